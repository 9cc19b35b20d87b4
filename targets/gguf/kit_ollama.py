"""A folder that `ollama create` takes: a GGUF package's file and a Modelfile. It was not run with Ollama itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from string import Template

from compiler.errors import UnusableInput
from compiler.kit import image_name
from compiler.package import Package

_README = Template("""# $model as $recipe, for Ollama

    ollama create $name -f Modelfile
    ollama run $name

The chat template and the end tokens are the model's own: Ollama takes the template from the file's metadata. How fast it is:
`edgec bench --device http://127.0.0.1:11434`.
""")


def fill_kit(package: Package, folder: Path) -> None:
    """Write Modelfile, README.md and the model.

    Raises:
        UnusableInput: the package has several files of weights.
    """
    file = package.artifact.name
    if package.lowered.main.files != (file,):
        raise UnusableInput(
            f"{package.title} has more than one file of weights, and the kit takes one. Build it again."
        )
    own = package.folder / "Modelfile"
    modelfile = own.read_text("utf-8") if own.is_file() else f"FROM ./{file}\n"
    (folder / "Modelfile").write_text(modelfile, encoding="utf-8")
    given = {"model": package.model.name, "recipe": package.recipe, "name": image_name(package.model.name)}
    (folder / "README.md").write_text(_README.substitute(given), encoding="utf-8")
    shutil.copyfile(package.artifact, folder / file)
