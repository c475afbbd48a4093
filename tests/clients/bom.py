"""Validates ML-BOMs with the JSON Schema of CycloneDX 1.6, as its Python library has it. Prints what it read; an assertion ends it with
an error.

    python bom.py FILE...
"""

import json
import pathlib
import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

FILES = [pathlib.Path(name) for name in sys.argv[1:]]


def main():
    assert FILES, "name a file"
    # Strict: a field that the schema does not know is an error.
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    for file in FILES:
        text = file.read_text()
        error = validator.validate_str(text)
        assert error is None, f"{file}: {error}"
        document = json.loads(text)
        # The validator itself can fail.
        document["metadata"]["component"]["modelCard"]["unknown"] = 1
        assert validator.validate_str(json.dumps(document)) is not None
        print(file, "is valid:", document["serialNumber"])


main()
