"""`surgeon schema`: the JSON Schema of a recipe."""

import surgeon
from surgeon_cli import output


def command() -> None:
    """Print the JSON Schema of a recipe, for editors.

    A recipe that starts with `# yaml-language-server: $schema=recipe.schema.json` is then checked as you type.

    Example:

      surgeon schema > recipe.schema.json
    """
    print(output.to_json(surgeon.schema()))
