"""What all tests share. Property tests have no time limit for an example: a busy machine is no bug."""

import pytest
from hypothesis import settings

from tests.shops import save_smaller_sample

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def smaller_sample(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of a benchmark that runs on the bundled shop with two of three items."""
    return ["--dataset", "sample", "--data-dir", str(save_smaller_sample(tmp_path_factory.mktemp("smaller_sample")))]
