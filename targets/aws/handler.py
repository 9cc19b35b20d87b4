"""What answers requests on AWS: the four functions that SageMaker's inference toolkit calls, around a package's own runtime.

The toolkit: aws/sagemaker-inference-toolkit, whose layout is model files at the top of a folder, `code/inference.py` and
`code/requirements.txt` beside them.
"""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

from compiler.errors import UnusableInput, missing_extra
from compiler.package import Package
from compiler.task import GENERATION, find_task
from targets.aws import pictures, texts
from targets.aws.generate import generator
from targets.aws.openers import RUNTIMES, Handler, is_neo_pytorch, opener_of


def require_for(package: Package, system: str) -> None:
    """Refuse native code of another machine than the kit is for, or that was compiled for this very processor.

    Raises:
        UnusableInput: it is such a package.
    """
    needs = package.lowered.platform
    if needs is None:
        return
    if system == "sagemaker" and (needs.system, needs.machine) != ("Linux", "x86_64"):
        raise UnusableInput(
            f"{package.title} is for {needs.machine}, and the kit's container runs on x86-64. Build another."
        )
    if package.recipe_full.get("variant") in (None, "local"):
        raise UnusableInput(
            f"{package.title} was compiled for the processor of the machine that built it, and other machines may lack its "
            "instructions. Build neo:fp32@x86-64-v3, or @aarch64 for a board."
        )


def write_handler(package: Package, folder: Path) -> None:
    """Write the model's files into `folder`, and `inference.py` and `requirements.txt` into its `code`.

    Raises:
        UnusableInput: no handler runs the package, or a library of its runtime is not installed here.
    """
    code = folder / "code"
    code.mkdir(parents=True)
    made = generator(package) if find_task(package.model.task).kind == GENERATION else _encoder(package)
    for name, own in made.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package.folder / own, folder / name)
    (code / "inference.py").write_text(made.script, encoding="utf-8")
    # The container of Neo's models has a Python and a numpy of its own time.
    pinned = "" if is_neo_pytorch(package) else "".join(f"{name}=={_version(name, package)}\n" for name in made.pinned)
    free = made.pinned if is_neo_pytorch(package) else ()
    (code / "requirements.txt").write_text(pinned + "".join(f"{name}\n" for name in (*free, *made.unpinned)), "utf-8")


def _version(tool: str, package: Package) -> str:
    try:
        return metadata.version(tool)
    except metadata.PackageNotFoundError as error:
        raise missing_extra(tool, package.recipe.partition(":")[0]) from error


def _encoder(package: Package) -> Handler:
    task, shapes, opener = package.model.task, package.lowered.shapes, opener_of(package)
    if opener is None or len(package.lowered.graphs) != 1:
        raise UnusableInput(
            f"The kit serves encoders of one length by {', '.join(RUNTIMES)}, and {package.title} is none. Build onnx:int8, "
            "for instance."
        )
    if task not in (*texts.TASKS, pictures.TASK) or shapes.batch not in (None, 1):
        known = ", ".join((*texts.TASKS, pictures.TASK))
        raise UnusableInput(f"The kit serves {known}, one input at a time; {package.title} is for {task}.")
    made = pictures.classifier(package, opener) if task == pictures.TASK else texts.encoder(package, opener)
    files = {opener.file: package.lowered.main.files[0]}
    if opener.folder:
        # The names that Neo gave; what lies in folders of its own stays there.
        inside = f"{opener.folder}/"
        files = {name.removeprefix(inside): name for name in package.files if name.startswith(inside)}
    return Handler(
        made.script,
        {**files, **made.files},
        (*opener.pinned, *made.pinned),
        opener.unpinned,
    )
