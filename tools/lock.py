"""Print the versions of everything installed, as pip constraints.

Local build tags (torch's ``+cpu``) are left out, so that each machine takes its own build.
"""

from __future__ import annotations

import re
from importlib.metadata import distributions


def main() -> None:
    """Print one ``name==version`` a line, sorted."""
    versions = {
        re.sub(r"[-_.]+", "-", dist.metadata["Name"]).lower(): dist.version.partition("+")[0]
        for dist in distributions()
    }
    versions.pop("luthier", None)
    print("# Written by `make lock`: the versions that the tests ran with.")
    for name, version in sorted(versions.items()):
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
