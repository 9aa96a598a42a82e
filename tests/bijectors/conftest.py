"""What several tests of flows need."""

import pytest


@pytest.fixture
def solves(monkeypatch):
    """Counts the solves; `len(solves)`."""
    from tfsymadj.bijectors import CNF

    calls = []
    integrate = CNF._integrate

    def counted(self, *args, **kwargs):
        calls.append(self.name)
        return integrate(self, *args, **kwargs)

    monkeypatch.setattr(CNF, "_integrate", counted)
    return calls
