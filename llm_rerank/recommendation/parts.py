"""Parts that must earn their place: each is measured on held-out users, and stays unless they speak against it.

In the order of ``specs.PARTS`` a part's components are fitted on the past and join those that stand; candidates are
retrieved and the blend is fitted anew, and the held-out NDCG@10 of both blends is compared case by case. A part stays
unless it is worse by more than a standard error: hundreds of cases tell a gain of 2 %, which is what these parts bring
where there are users enough to judge (benchmarks/regimes.py), from nothing hardly better than a coin. Where the cases
are too few to fit a blend, it stays out: what text says to a young shop is in its words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Self

from llm_rerank.recommendation.components import Component
from llm_rerank.recommendation.held_out import HeldOutCases
from llm_rerank.recommendation.inputs import FitTools, Fold, Folds
from llm_rerank.recommendation.log import FitLog, duration
from llm_rerank.recommendation.specs import PARTS, ComponentSpec, in_use
from llm_rerank.recommendation.stage import Float64Array, Stage, StageFit, Start, fit_stage
from llm_rerank.statistics import Difference, paired_difference
from llm_rerank.types import DataError


@dataclass(frozen=True)
class PartVerdict:
    """What a part is worth and whether it stays.

    ndcg: held-out NDCG@10 without and with it. difference: of the two. Both are None where the cases were too few to
    fit a blend. pays: what the figures say. kept: what was done; reason: why, where the gain alone does not say.
    seconds: what fitting and measuring took.
    """

    part: str
    ndcg: tuple[float, float] | None
    difference: Difference | None
    n_cases: int
    seconds: float
    pays: bool
    kept: bool
    reason: str = ""

    def sentence(self) -> str:
        """Say gain, interval, cost and outcome, and how to overrule it."""
        outcome = f"on; leave it out with {self.part}='off'" if self.kept else f"off; keep it with {self.part}='always'"
        outcome += f" ({self.reason})" if self.reason else ""
        if self.difference is None or self.ndcg is None:
            return f"{self.part}: not judged, costs {duration(self.seconds)}: {outcome}"
        return (
            f"{self.part}: {self.difference.relative_to(self.ndcg[0])} (NDCG@10 of {self.n_cases:,} held-out cases "
            f"{self.ndcg[0]:.4f} → {self.ndcg[1]:.4f}), costs {duration(self.seconds)}: {outcome}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        difference = None if self.difference is None else dict(vars(self.difference))
        return {**vars(self), "ndcg": None if self.ndcg is None else list(self.ndcg), "difference": difference}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from ``to_dict``'s values."""
        d, ndcg = values["difference"], values["ndcg"]
        difference = None if d is None else Difference(**d)
        return cls(**{**values, "ndcg": None if ndcg is None else tuple(ndcg), "difference": difference})


@dataclass(frozen=True)
class Standing:
    """What stands so far: the specs in use, their fitted components, the folds, and the stage fitted on fold F.

    ndcg: held-out NDCG@10 of each of fold F's cases with a target, float64; None where they were too few for a blend.
    """

    specs: Sequence[ComponentSpec]
    components: Sequence[Component]
    folds: Folds
    stage: Stage
    ndcg: Float64Array | None
    verdicts: Sequence[PartVerdict] = field(default_factory=tuple)

    @classmethod
    def of(
        cls,
        specs: Sequence[ComponentSpec],
        components: Sequence[Component],
        held_out: HeldOutCases,
        tools: FitTools,
        start: Start | None,
        log: FitLog,
    ) -> Self:
        """Score the held-out cases with these components and fit the stage."""
        folds = held_out.score(components, tools, log)
        log.step("fusion")
        fitted = fit_fusion_stage(folds.f, components, tools, len(held_out.items), start)
        return cls(specs, components, folds, fitted.stage, fitted.ndcg)


def fit_fusion_stage(
    fold: Fold,
    components: Sequence[Component],
    tools: FitTools,
    n_items: int,
    start: Start | None,
    *,
    all_joined: bool = False,
) -> StageFit:
    """Fit blend, guard and calibrator on a fold with the scores of these components.

    all_joined: the cross-encoder, if there is one, has been found to pay.
    """
    always = all_joined or tools.config.cross_encoder == "always"
    return fit_stage(
        fold,
        [component.name for component in components if component.blends],
        features=tools.features,
        n_items=n_items,
        start=None if start is None else start.stage,
        seed=tools.config.seed,
        cross_encoder="always" if always else "auto",
    )


def stand_on_parts(held_out: HeldOutCases, tools: FitTools, log: FitLog, start: Start | None = None) -> Standing:
    """Fit what is always there, then try each part on top of what stands."""
    specs = in_use(tools.specs, ())
    components = held_out.fit_components(specs, tools, log, {})
    standing = Standing.of(specs, components, held_out, tools, start, log)
    for part in PARTS:
        if any(spec.part == part for spec in tools.specs):
            standing = _try_part(part, standing, held_out, tools, log, start)
    return standing


def _try_part(
    part: str,
    standing: Standing,
    held_out: HeldOutCases,
    tools: FitTools,
    log: FitLog,
    start: Start | None,
) -> Standing:
    began = perf_counter()
    chosen = {component.name: component.settings for component in standing.components}
    specs = in_use([*standing.specs, *(replace(s, part=None) for s in tools.specs if s.part == part)], ())
    added = [spec for spec in specs if spec not in standing.specs]
    try:
        fitted = held_out.fit_components(added, tools, log, chosen)
    except DataError as error:
        log.say(f"{part}: left out, for it cannot be fitted here: {error}")
        return standing
    by_name = {component.name: component for component in [*standing.components, *fitted]}
    components = [by_name[spec.name] for spec in specs]
    wider = Standing.of(specs, components, held_out, tools, start, log)
    verdict = _judge(part, standing, wider, tools, perf_counter() - began)
    log.say(verdict.sentence())
    return replace(wider if verdict.kept else standing, verdicts=[*standing.verdicts, verdict])


def _judge(part: str, standing: Standing, wider: Standing, tools: FitTools, seconds: float) -> PartVerdict:
    without, with_part = standing.ndcg, wider.ndcg
    difference, ndcg, n_cases = None, None, 0
    pays, reason = False, "too few held-out cases to tell"
    if without is not None and with_part is not None:
        difference = paired_difference(with_part, without, seed=tools.config.seed)
        ndcg, n_cases = (float(without.mean()), float(with_part.mean())), len(without)
        error = float((with_part - without).std(ddof=1)) / n_cases**0.5
        pays = difference.mean > -error
        reason = "within a standard error of no loss" if pays and difference.mean <= 0 else ""
    kept = pays
    if not kept and getattr(tools.config, part) == "always":
        kept, reason = True, f"{part}='always'"
    return PartVerdict(part, ndcg, difference, n_cases, seconds, pays, kept, reason)
