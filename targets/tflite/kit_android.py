"""An Android library (Gradle, Kotlin) around a LiteRT package: the model as an asset, a typed wrapper. Nothing is compiled."""

from __future__ import annotations

import shutil
from pathlib import Path
from string import Template

from compiler.errors import UnusableInput
from compiler.kit import camel_case, known_type, type_name
from compiler.package import Package
from compiler.task import FUNCTION, GENERATION, find_task
from targets.tflite.engine import require_template
from targets.tflite.target import BUNDLE, FILE

# Of Google's Maven repository.
_LITERT = "com.google.ai.edge.litert:litert:2.2.0"
_LITERT_LM = "com.google.ai.edge.litertlm:litertlm-android:0.18.0"
_COROUTINES = "org.jetbrains.kotlinx:kotlinx-coroutines-android:1.9.0"
_TOKENS = 2048

_GRADLE = Template("""// $recipe
plugins {
    id("com.android.library")
    id("org.jetbrains.kotlin.android")
}

android {
    namespace = "$package"
    compileSdk = 35
    defaultConfig { minSdk = 26 }
    // The runtime maps the model from the file: it must not be packed.
    androidResources { noCompress += listOf("tflite", "litertlm") }
}

dependencies {
$dependencies
}
""")

_CHAT = Template("""package $package

import android.content.Context
import com.google.ai.edge.litertlm.Backend
import com.google.ai.edge.litertlm.Conversation
import com.google.ai.edge.litertlm.Engine
import com.google.ai.edge.litertlm.EngineConfig
import java.io.File
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.map

/** $model as `$recipe`. Made by edgec; make it again rather than edit it. */
class $name private constructor(private val engine: Engine) : AutoCloseable {
    private var conversation: Conversation = engine.createConversation()

    /** What the model answers, piece by piece, as they come. */
    fun ask(text: String): Flow<String> = conversation.sendMessageAsync(text).map { it.toString() }

    /** Forget the conversation. */
    fun reset() {
        conversation.close()
        conversation = engine.createConversation()
    }

    override fun close() {
        conversation.close()
        engine.close()
    }

    companion object {
        private const val MODEL = "$file"
        private const val BYTES = ${nbytes}L

        /**
         * Load the model, which takes seconds: not on the main thread. The cache grows with the tokens that are there,
         * up to [maxNumTokens].
         */
        fun open(context: Context, maxNumTokens: Int = $tokens): $name {
            val config = EngineConfig(
                modelPath = unpacked(context).path,
                backend = Backend.CPU(),
                maxNumTokens = maxNumTokens,
                cacheDir = context.cacheDir.path,
            )
            val engine = Engine(config)
            engine.initialize()
            return $name(engine)
        }

        /** The engine opens files, and an asset is none: it is copied once. */
        private fun unpacked(context: Context): File {
            val file = File(context.filesDir, "$digest.litertlm")
            if (file.length() != BYTES) {
                val part = File(context.filesDir, "$digest.part")
                context.assets.open(MODEL).use { from -> part.outputStream().use { to -> from.copyTo(to) } }
                check(part.renameTo(file)) { "cannot store the model" }
            }
            return file
        }
    }
}
""")

_ENCODE = Template("""package $package

import android.content.Context
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel

/** $model as `$recipe`. Made by edgec; make it again rather than edit it. */
class $name(context: Context) : AutoCloseable {
    private val model = CompiledModel.create(context.assets, "$file", CompiledModel.Options(Accelerator.CPU))
    private val inputs = model.createInputBuffers()
    private val outputs = model.createOutputBuffers()

    /** Outputs by name, row by row: $outputs. Inputs are flat arrays: $shapes. */
    fun run($parameters): Map<String, FloatArray> {
$writes
        model.run(inputs, outputs)
        return mapOf($reads)
    }

    override fun close() {
        inputs.forEach { it.close() }
        outputs.forEach { it.close() }
        model.close()
    }
}
""")


def fill_kit(package: Package, root: Path) -> None:
    """Write the Gradle module into the folder `root`.

    Raises:
        UnusableInput: it is a language model without a chat template, or an encoder of several lengths.
    """
    if len(package.lowered.graphs) > 1 and find_task(package.model.task).kind != GENERATION:
        raise UnusableInput(
            f"{package.title} has a signature for each of several lengths, and the class of the kit for android calls one. "
            "Build it without +lengths."
        )
    # So that no name is one of Kotlin's own.
    name = f"{type_name(package.model.name)}Kit"
    own = f"edgec.{name.lower()}"
    chats = find_task(package.model.task).kind == GENERATION
    if chats:
        require_template(package)
    sources = root / "src" / "main" / "kotlin" / "edgec" / name.lower()
    assets = root / "src" / "main" / "assets"
    sources.mkdir(parents=True)
    assets.mkdir()
    files = (BUNDLE,) if chats else (FILE, "tokenizer.json")
    for each in files:
        if (package.folder / each).is_file():
            shutil.copyfile(package.folder / each, assets / each)
    dependencies = (_LITERT_LM, _COROUTINES) if chats else (_LITERT,)
    gradle = _GRADLE.substitute(
        package=own,
        recipe=package.recipe,
        dependencies="\n".join(f'    implementation("{each}")' for each in dependencies),
    )
    (root / "build.gradle.kts").write_text(gradle, encoding="utf-8")
    (root / "src" / "main" / "AndroidManifest.xml").write_text("<manifest />\n", encoding="utf-8")
    common = {"package": own, "model": package.model.name, "recipe": package.recipe, "name": name, "file": files[0]}
    wrapper = _CHAT.substitute(common, **_chat(package)) if chats else _ENCODE.substitute(common, **_encode(package))
    (sources / f"{name}.kt").write_text(wrapper, encoding="utf-8")
    (root / "README.md").write_text(_readme(package, name, own, chats), encoding="utf-8")


def _chat(package: Package) -> dict[str, object]:
    longest = package.lowered.shapes.longest_sequence or _TOKENS
    return {
        "nbytes": package.files[BUNDLE].nbytes,
        "digest": package.files[BUNDLE].sha256[:16],
        "tokens": package.lowered.shapes.context_length or min(longest, _TOKENS),
    }


def _encode(package: Package) -> dict[str, object]:
    graph = package.lowered.main
    kotlin = {"int32": ("IntArray", "writeInt"), "float32": ("FloatArray", "writeFloat")}
    types = [known_type(port, kotlin) for port in graph.inputs]
    if other := next((port for port in graph.outputs if port.dtype != "float32"), None):
        raise UnusableInput(
            f"{package.title} gives {other.name} as {other.dtype}, and the class of the kit for android reads float32. Save "
            "the model with floats there."
        )
    names = _arguments(package)
    writes = [
        f"        inputs[{index}].{write}({each})"
        for index, (each, (_, write)) in enumerate(zip(names, types, strict=True))
    ]
    return {
        "outputs": ", ".join(port.name for port in graph.outputs),
        "shapes": ", ".join(
            f"{each} {' x '.join(map(str, port.shape))}" for each, port in zip(names, graph.inputs, strict=True)
        ),
        "parameters": ", ".join(f"{each}: {array}" for each, (array, _) in zip(names, types, strict=True)),
        "writes": "\n".join(writes),
        "reads": ", ".join(
            f'"{port.name}" to outputs[{index}].readFloat()' for index, port in enumerate(graph.outputs)
        ),
    }


# Kotlin's own words, and what the class has.
_TAKEN = (
    "as", "break", "class", "continue", "do", "else", "false", "for", "fun", "if", "in", "interface", "is", "null", "object",
    "package", "return", "super", "this", "throw", "true", "try", "typealias", "typeof", "val", "var", "when", "while",
    "model", "inputs", "outputs",
)  # fmt: skip


def _arguments(package: Package) -> list[str]:
    names = [camel_case(port.name) for port in package.lowered.main.inputs]
    names = [f"{name}Values" if name in _TAKEN or not name else name for name in names]
    if len(set(names)) < len(names):
        raise UnusableInput(f"{package.title} has two inputs of one name in Kotlin: {', '.join(names)}. Rename one.")
    return names


def _readme(package: Package, name: str, own: str, chats: bool) -> str:
    use = (
        f'{name}.open(context).use {{ model -> model.ask("Hello!").collect {{ print(it) }} }}'
        if chats
        else f"{name}(context).use {{ model -> model.run(" + ", ".join(_arguments(package)) + ") }"
    )
    ids = (
        ""
        if chats or find_task(package.model.task).kind == FUNCTION
        else "\nToken ids come from `tokenizer.json` among the assets, padded to the length that `run` tells.\n"
    )
    return f"""# {name}

{package.model.name} as `{package.recipe}`, made by edgec. Licence of the model: {package.model.licence or "not stated"}.

Put this folder into an Android project as a module (`include(":{name.lower()}")` in `settings.gradle.kts`). The
app's own `build.gradle.kts` needs `androidResources {{ noCompress += listOf("tflite", "litertlm") }}` too: the model is not
to be packed.

```kotlin
import {own}.{name}

{use}
```
{ids}
This text was generated on a machine without Android's tools; it was not compiled there.
"""
