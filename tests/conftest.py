"""What the session as a whole tells at its end.

Only this conftest is also read where workers run the tests: those below it are the workers' own.
"""

from __future__ import annotations

pytest_plugins = ["tests.e2e.field"]
