"""Write the bill of materials of an image, CycloneDX JSON: its Python packages and its Debian (or Ubuntu) packages.

The Python part comes from the distributions that are installed, by cyclonedx-py; the other from dpkg's own
list. It names no time and no serial number, so that equal images have equal bills.

    python sbom.py /opt/curator/bin/python sbom.json
"""

import json
import platform
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

_FIELDS = "${Package}\t${Version}\t${Architecture}\n"


def python_part(interpreter: str) -> dict[str, object]:
    """What cyclonedx-py finds in an environment."""
    command = [str(Path(sys.executable).with_name("cyclonedx-py")), "environment", interpreter]
    command += ["--output-reproducible", "--output-format", "JSON", "--spec-version", "1.6"]
    found: dict[str, object] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def debian_part() -> list[dict[str, str]]:
    """A component for each package that dpkg has installed."""
    listed = subprocess.run(
        ["dpkg-query", "--show", f"--showformat={_FIELDS}"], check=True, capture_output=True, text=True
    )
    system = platform.freedesktop_os_release()  # scanners look an advisory up by distribution
    distribution, release = system["ID"], f"{system['ID']}-{system['VERSION_ID']}"
    components = []
    for line in listed.stdout.splitlines():
        name, version, architecture = line.split("\t")
        which = f"{quote(name, safe='')}@{quote(version, safe=':')}"
        purl = f"pkg:deb/{distribution}/{which}?arch={architecture}&distro={release}"
        components.append({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl})
    return components


def main() -> None:
    """Write one bill."""
    interpreter, target = sys.argv[1:3]
    bill = python_part(interpreter)
    python_components = bill["components"]
    assert isinstance(python_components, list)
    debian_components = debian_part()
    bill["components"] = [*python_components, *debian_components]
    Path(target).write_text(json.dumps(bill, indent=1) + "\n", encoding="utf-8")
    print(f"{target}: {len(python_components)} Python packages, {len(debian_components)} Debian packages")


if __name__ == "__main__":
    main()
