"""What several tests of flows need."""

import pytest

from tfsymadj.bijectors import CNF


@pytest.fixture
def solves(monkeypatch):
    """Counts the solves; `len(solves)`."""
    calls = []
    integrate = CNF._integrate

    def counted(self, *args, **kwargs):
        calls.append(self.name)
        return integrate(self, *args, **kwargs)

    monkeypatch.setattr(CNF, "_integrate", counted)
    return calls
