"""The wheel, built and installed in a clean environment elsewhere, works without a network and has all it needs."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SYSTEMS = {"popularity", "recent_popularity", "item_knn", "als", "text_ease", "lexical", "fused"}
PARTS = {"sequence", "semantic"}  # where the fit finds that they pay
SAMPLE = ("interactions.csv.gz", "items.jsonl", "users.csv")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Wheel and source archive, built from a copy without anything that git ignores."""
    folder = tmp_path_factory.mktemp("built")
    copy = folder / "project"
    ignored = shutil.ignore_patterns(".venv", ".git", "__pycache__", ".*_cache", "dist", "build", ".hypothesis")
    shutil.copytree(ROOT, copy, ignore=ignored)
    # in the environment at hand, which has hatchling at its pin: no isolation, no network
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(copy)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A fresh environment with the wheel and nothing else of the project.

    Its dependencies are not installed again: a .pth file lends those of the environment at hand, from which the
    project itself is hidden (an editable install would win over the wheel's absence unnoticed).
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    lent = folder / "lent"
    lent.mkdir()
    for entry in next(Path(path) for path in sys.path if (Path(path) / "torch").is_dir()).iterdir():
        if "llm_rerank" not in entry.name and not entry.name.endswith(".pth"):
            (lent / entry.name).symlink_to(entry)
    (site / "lent.pth").write_text(f"{lent}\n")
    return folder


def run_offline(installed: Path, *words: str) -> subprocess.CompletedProcess:
    """Run the installed command in another folder, without a network."""
    environment = {
        name: value for name, value in os.environ.items() if not name.upper().startswith(("PYTHON", "VIRTUAL", "LLM_"))
    }
    dead = "http://127.0.0.1:9"  # nobody listens there
    environment |= {"HTTP_PROXY": dead, "HTTPS_PROXY": dead, "http_proxy": dead, "https_proxy": dead, "NO_PROXY": ""}
    environment |= {"HOME": str(installed / "home"), "HF_HOME": str(installed / "home" / "hf")}
    (installed / "home").mkdir(exist_ok=True)
    command = [str(installed / "env" / "bin" / words[0]), *words[1:]]
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0:
        command = ["unshare", "-rn", *command]  # no network device but a loopback that is down
    return subprocess.run(command, cwd=installed / "home", env=environment, capture_output=True, text=True, timeout=900)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_archives_carry_prompts_sample_and_licence(built, wheel):
    prompts = [path.name for path in (ROOT / "prompts").glob("*.jinja")]
    assert prompts
    with zipfile.ZipFile(wheel) as archive:
        for ours, theirs in [
            *((ROOT / "prompts" / name, f"llm_rerank/_prompts/{name}") for name in prompts),
            *((ROOT / "data" / name, f"llm_rerank/_sample/{name}") for name in SAMPLE),
        ]:
            assert digest(archive.read(theirs)) == digest(ours.read_bytes()), theirs
        names = archive.namelist()
        assert "llm_rerank/evaluation/report.html.jinja" in names
        page = {path.relative_to(ROOT).as_posix() for path in (ROOT / "llm_rerank" / "service" / "page").iterdir()}
        assert len(page) > 3 and page <= set(names)
        assert any(name.endswith("licenses/LICENSE") for name in names)
        modules = {name for name in names if name.endswith(".py") and name.startswith("llm_rerank/")}
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "llm_rerank").rglob("*.py")}
    assert expected <= modules
    assert not any(name.startswith(("tests/", "benchmarks/", "llm_rerank/_sample/make")) for name in names)
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"prompts/{name}" for name in prompts} | {f"data/{name}" for name in SAMPLE} <= names
    assert {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "constraints.txt", "tests/test_wheel.py"} <= names


def test_library_comes_from_the_wheel(installed):
    result = run_offline(installed, "python", "-c", "import llm_rerank; print(llm_rerank.__file__)")
    assert result.stdout.startswith(str(installed / "env")), result.stdout + result.stderr


def test_network_is_off(installed):
    script = "import urllib.request; urllib.request.urlopen('https://pypi.org', timeout=5)"
    result = run_offline(installed, "python", "-c", script)
    assert result.returncode != 0
    assert "URLError" in result.stderr


def test_demo_runs_from_the_wheel_without_a_network(installed):
    result = run_offline(installed, "llm-rerank", "demo")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert "semantic" in result.stdout  # the embedded encoder was found
    lines = result.stdout.splitlines()
    rows = [re.match(r"(\w+) +(0\.\d{4}) \[", line) for line in lines]
    systems = {row[1]: float(row[2]) for row in rows if row}
    assert SYSTEMS <= set(systems) <= SYSTEMS | PARTS
    assert systems["fused"] > systems["popularity"]
    assert any(line.startswith("Why the biggest moves") for line in lines)
