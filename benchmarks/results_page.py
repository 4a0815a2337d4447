"""Write docs/results.md, its plots and the README's table from the committed reports; nothing is measured here.

    python -m benchmarks.results_page            writes them
    python -m benchmarks.results_page --check    says which of them are not what the reports say now, and fails

docs/plots belongs to this script: pictures that it does not make are removed. The README's table stands between two
comments, ``<!-- results -->`` and ``<!-- /results -->``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.results_advice import own_choice, when_you_need_what
from benchmarks.results_plots import plots_of
from benchmarks.results_questions import further
from benchmarks.results_reports import METRIC, OWN, Report, Results, figure
from benchmarks.results_sections import how, maps, markdown_table, on_test, over_best_single, strata
from llm_rerank.storage import atomic_path

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results"
BEGIN, END = "<!-- results -->", "<!-- /results -->"

Section = Callable[[Results], str]

SECTIONS: tuple[Section, ...] = (how, on_test, strata, maps, further, own_choice, when_you_need_what)
"""The page from top to bottom; a section without reports gives "" and is left out."""

HEAD = """# Results

Made by `python -m benchmarks.results_page` from [benchmarks/results](../benchmarks/results); not to be edited by hand.
"""


def page(results: Results) -> str:
    """Lay out docs/results.md."""
    return "\n".join([HEAD, *(text for text in (section(results) for section in SECTIONS) if text)])


def readme_table(tests: Mapping[str, Report]) -> str:
    """Lay out the README's table: a row a system, a column a data set; then the own choice beside the best single."""
    names = list(dict.fromkeys(name for report in tests.values() for name in report["systems"]))
    rows = [[f"`{name}`", *(_readme_cell(report, name) for report in tests.values())] for name in names]
    beside = [f"- {dataset}: {over_best_single(report)}" for dataset, report in tests.items()]
    return "\n".join([markdown_table(["NDCG@10, test", *tests], rows), "", *beside])


def _readme_cell(report: Report, name: str) -> str:
    entry = report["systems"].get(name)
    if entry is None:
        return "–"
    if name != OWN:
        return figure(entry[METRIC])
    low, high = entry["ci95"][METRIC]
    return f"**{figure(entry[METRIC])}** [{figure(low)}, {figure(high)}]"


def with_table(readme: str, table: str) -> str | None:
    """Put the table between its comments; None where the text has not each of them once, in order."""
    before, begin, rest = readme.partition(BEGIN)
    between, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in between + after or END in before + after:
        return None
    return f"{before}{begin}\n{table}\n{end}{after}"


def made(results: Results) -> dict[str, str]:
    """Make the page and its plots: text by path below the project's folder."""
    plots = [plot for dataset, report in results.maps.items() for plot in plots_of(dataset, report)]
    return {"docs/results.md": page(results), **{f"docs/plots/{plot.name}.svg": plot.svg for plot in plots}}


def complaints(project: Path, results: Results) -> list[str]:
    """Say what in a project's folder is not what the reports say now; nothing where all is."""
    files = made(results)
    found = [f"{name} is not what the reports say" for name, text in files.items() if _text(project / name) != text]
    found += [f"{name} is no plot of the page" for name in _foreign_plots(project, files)]
    readme = _text(project / "README.md")
    wanted = with_table(readme, readme_table(results.tests))
    if wanted is None:
        found.append(f"README.md has no table: put a line {BEGIN} and, after it, a line {END} where it shall stand")
    elif wanted != readme:
        found.append("README.md: its table is not what the reports say")
    return found


def write(project: Path, results: Results) -> None:
    """Write the page, its plots, and the table into a README that has the place for it."""
    files = made(results)
    for name in _foreign_plots(project, files):
        (project / name).unlink()
    readme = with_table(_text(project / "README.md"), readme_table(results.tests))
    if readme is not None:
        files["README.md"] = readme
    for name, text in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(project / name) as unfinished:
            unfinished.write_text(text, encoding="utf-8")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _foreign_plots(project: Path, files: Mapping[str, str]) -> list[str]:
    there = [f"docs/plots/{path.name}" for path in sorted((project / "docs" / "plots").glob("*.svg"))]
    return [name for name in there if name not in files]


def main(arguments: Sequence[str] | None = None) -> list[str]:
    """Write, or check; returns what is wrong afterwards."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results_page", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is not up to date")
    options = parser.parse_args(arguments)
    results = Results.read(RESULTS)
    if not options.check:
        write(PROJECT, results)
    found = complaints(PROJECT, results)
    for complaint in found:
        print(complaint)
    if options.check and found:
        print("python -m benchmarks.results_page writes them")
    return found


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
