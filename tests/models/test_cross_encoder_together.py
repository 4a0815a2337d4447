"""One fine-tuning by two processes: what the first decides holds for both. They are started once, for all of it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llm_rerank.models.cross_encoder import training
from llm_rerank.models.cross_encoder.training import fine_tune
from tests.models.test_cross_encoder_training import (
    ITEMS,
    QUICK,
    SHORT,
    UNEVEN,
    killed_at,
    planted_lists,
    tiny_model,
    uneven_lists,
    with_other_last_bits,
)
from tests.tiny_encoder import save_tiny_encoder


def shared_steps(model, rank, folder, patch):
    return planted_lists(200, 1), planted_lists(60, 2), ITEMS, QUICK


def checkpoint_of_the_first(model, rank, folder, patch):
    """The second has no checkpoint, and lists with other last bits."""
    lists, validation = uneven_lists(80, 1), uneven_lists(30, 2)
    if rank:
        lists, validation = with_other_last_bits(lists), with_other_last_bits(validation)
    return lists, validation, UNEVEN, SHORT


def unlike_evaluations(model, rank, folder, patch):
    """The second sees no step that is better than the start, and would be out of patience."""
    judge = training.judge_lists
    if rank:
        patch.setattr(training, "judge_lists", lambda *judged: {**judge(*judged), "loss": 1.0})
    return planted_lists(200, 1), planted_lists(60, 2), ITEMS, replace(QUICK, patience=1)


def loss_that_only_one_has(model, rank, folder, patch):
    if rank:
        loss = training.ListScorer.forward
        patch.setattr(training.ListScorer, "forward", lambda self, lists: loss(self, lists) * float("nan"))
    return planted_lists(200, 1), planted_lists(60, 2), ITEMS, QUICK


def steps_without_any_history(model, rank, folder, patch):
    """Four histories of five are unknown items: in some steps one process has none to read."""
    lists = planted_lists(200, 1)
    values = lists.cases.history.values.copy()
    values[np.random.default_rng(0).random(len(values)) < 0.8] = -1
    cases = replace(lists.cases, history=replace(lists.cases.history, values=values))
    return replace(lists, cases=cases), planted_lists(40, 2), ITEMS, replace(QUICK, steps=20)


WORKS = [shared_steps, checkpoint_of_the_first, unlike_evaluations, loss_that_only_one_has, steps_without_any_history]


def main(tiny, folder):
    """What each of the two processes does."""
    rank, told = int(os.environ["RANK"]), {}
    for work in WORKS:
        model, said = tiny_model(tiny), []
        with pytest.MonkeyPatch.context() as patch:
            arguments = work(model, rank, folder, patch)
            checkpoint = folder / f"{work.__name__}{rank}"
            result = fine_tune(model, *arguments, checkpoint=checkpoint, say=said.append)
        weights = np.concatenate([p.detach().numpy().ravel() for p in model.network.parameters()])
        told[work.__name__] = [said, result.log, result.best_step, weights.tobytes().hex()]
    (folder / f"told{rank}.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What each process was told and has trained, by work."""
    folder = tmp_path_factory.mktemp("together")
    tiny = save_tiny_encoder(folder)
    checkpoint = folder / f"{checkpoint_of_the_first.__name__}0"
    with pytest.MonkeyPatch.context() as patch:
        lists = uneven_lists(80, 1), uneven_lists(30, 2)
        killed_at(8, patch, tiny_model(tiny), *lists, UNEVEN, SHORT, checkpoint=checkpoint)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "tests.models.test_cross_encoder_together", tiny, str(folder)]
    run = subprocess.run(
        command,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads((folder / f"told{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("work", [work.__name__ for work in WORKS])
def test_two_processes_end_with_one_model_and_one_log(told, work):
    first, second = (each[work] for each in told)
    assert first[1:] == second[1:]  # gradients were shared, or each would have its own weights


def test_what_is_learned_together_is_right(told):
    _, log, _, _ = told[0]["shared_steps"]
    assert log[-1]["accuracy"] > 0.9


def test_both_go_on_from_the_checkpoint_of_the_first(told):
    for each in told:
        said, log, _, _ = each["checkpoint_of_the_first"]
        assert said[0] == "going on from the checkpoint after step 6"
        assert [entry["step"] for entry in log] == [0, 6, 12]


def test_neither_ends_before_the_other(told):
    for each in told:
        assert [entry["step"] for entry in each["unlike_evaluations"][1]] == [0, 20, 40, 60]
        assert each["loss_that_only_one_has"][0][1] == "step 1: the loss is nan; the best so far is kept"


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
