"""Every planted mistake of mutations.py is found by the tests that it names."""

import pytest
from mutations import MUTATIONS, ROOT, Copy


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_fits_the_kernels(mutation):
    assert (ROOT / mutation.file).read_text().count(mutation.old) == 1
    assert all((ROOT / test.split("::")[0]).exists() for test in mutation.tests)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Copy:
    return Copy(tmp_path_factory.mktemp("mutations"))


@pytest.mark.slow
@pytest.mark.parametrize("tests, backend", sorted({(m.tests, m.backend) for m in MUTATIONS}), ids=str)
def test_without_a_mutation_the_tests_pass(copy, tests, backend):
    result = copy.run_tests(tests, backend)
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_is_found(copy, mutation):
    problem = copy.survives(mutation)
    assert problem is None, problem
