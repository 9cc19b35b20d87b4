"""A Swift package around a Core ML package: a typed wrapper, the tokenizer's files, a README. Nothing is compiled."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from string import Template

from compiler.errors import UnusableInput
from compiler.kit import camel_case, known_type, type_name
from compiler.package import Package, Port
from compiler.task import GENERATION, find_task

_TOKENIZER = re.compile(r"(tokenizer|tokenizer_config|special_tokens_map|config|generation_config)\.json|vocab\..*")
_PLATFORMS = {
    "ios16": ".iOS(.v16), .macOS(.v13)",
    "ios17": ".iOS(.v17), .macOS(.v14)",
    "ios18": ".iOS(.v18), .macOS(.v15)",
}

_MANIFEST = Template("""// swift-tools-version: 5.9
// $tools
import PackageDescription

let package = Package(
    name: "$name",
    platforms: [$platforms],
    products: [.library(name: "$name", targets: ["$name"])],
    targets: [.target(name: "$name", resources: [.copy("Resources")])]
)
""")

_HEAD = Template("""import CoreML
import Foundation

/// $model as `$recipe`. Made by edgec; make it again rather than edit it.
public final class $name {
    /// Where the model and the tokenizer's files are.
    public static let resources = Bundle.module.url(forResource: "Resources", withExtension: nil)!

    private static func load(_ function: String?, _ configuration: MLModelConfiguration) async throws -> MLModel {
        let configuration = configuration.copy() as! MLModelConfiguration
        $function
        let compiled = try await MLModel.compileModel(at: resources.appendingPathComponent("model.mlpackage"))
        return try await MLModel.load(contentsOf: compiled, configuration: configuration)
    }
""")

_ENCODER = Template("""
    private let model: MLModel

    public init(configuration: MLModelConfiguration = .init()) async throws {
        model = try await Self.load(nil, configuration)
    }

    /// $lengths
    ///
    /// - Parameters: each input as a flat array, row by row.
    /// - Returns: outputs by name: $outputs.
    public func callAsFunction($parameters) throws -> [String: MLMultiArray] {
        var features: [String: MLFeatureValue] = [:]
$features
        let answer = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: features))
        var arrays: [String: MLMultiArray] = [:]
        for name in answer.featureNames { arrays[name] = answer.featureValue(for: name)?.multiArrayValue }
        return arrays
    }
}
""")

_DECODER = Template("""
    /// Tokens that the cache holds.
    public static let contextLength = $context
    private static let chunk = $chunk
    private let prefill: MLModel
    private let decode: MLModel
    private var state: MLState
    private var position = 0

    public init(configuration: MLModelConfiguration = .init()) async throws {
        prefill = try await Self.load("prefill", configuration)
        decode = try await Self.load("decode", configuration)
        state = prefill.makeState()
    }

    /// Forget the conversation.
    public func reset() {
        state = prefill.makeState()
        position = 0
    }

    /// Continue a prompt with the most probable tokens, until `isEnd` says so, `count` are there, or the context is full.
    public func generate(_ prompt: [Int32], count: Int, isEnd: (Int32) -> Bool) throws -> [Int32] {
        precondition(!prompt.isEmpty && position + prompt.count <= Self.contextLength)
        var token: Int32 = 0
        var start = 0
        while start < prompt.count {
            // A whole chunk is written to the cache, and must end within it.
            let fits = position + Self.chunk <= Self.contextLength
            let size = fits ? min(Self.chunk, prompt.count - start) : 1
            token = try step(Array(prompt[start..<start + size]))
            start += size
        }
        var new: [Int32] = []
        while new.count < count && !isEnd(token) {
            new.append(token)
            if position == Self.contextLength { break }
            token = try step([token])
        }
        return new
    }

    /// Take tokens; the most probable one after them.
    private func step(_ tokens: [Int32]) throws -> Int32 {
        let length = tokens.count > 1 ? Self.chunk : 1
        let ids = try MLMultiArray(shape: [1, NSNumber(value: length)], dataType: .int32)
        for index in 0..<length { ids[index] = NSNumber(value: index < tokens.count ? tokens[index] : 0) }
        let place = try MLMultiArray(shape: [1], dataType: .int32)
        place[0] = NSNumber(value: position)
        let given = try MLDictionaryFeatureProvider(dictionary: ["input_ids": ids, "position": place])
        let answer = try (length > 1 ? prefill : decode).prediction(from: given, using: state)
        position += tokens.count
        let output = answer.featureValue(for: "$output")!.multiArrayValue!
        return $choice
    }
$most_probable}
""")

_MOST_PROBABLE = """
    private func mostProbable(_ logits: MLMultiArray, at row: Int) -> Int32 {
        let width = logits.shape[2].intValue
        var best = 0
        var largest = -Float.infinity
        for index in 0..<width {
            let value = logits[[0, NSNumber(value: row), NSNumber(value: index)]].floatValue
            if value > largest { (largest, best) = (value, index) }
        }
        return Int32(best)
    }
"""


def fill_kit(package: Package, root: Path) -> None:
    """Write the Swift package into the folder `root`.

    Raises:
        UnusableInput: the package is of a form that the wrapper does not know.
    """
    _refuse(package)
    name = type_name(package.model.name)
    resources = root / "Sources" / name / "Resources"
    shutil.copytree(package.artifact, resources / package.artifact.name)
    for file in sorted(package.folder.iterdir()):
        if _TOKENIZER.fullmatch(file.name):
            shutil.copyfile(file, resources / file.name)
    variant = package.recipe_full["variant"] or "ios18"
    manifest = _MANIFEST.substitute(name=name, platforms=_PLATFORMS[variant], tools=package.recipe)
    (root / "Package.swift").write_text(manifest, encoding="utf-8")
    (resources.parent / f"{name}.swift").write_text(_wrapper(package, name), encoding="utf-8")
    (root / "README.md").write_text(_readme(package, name), encoding="utf-8")


def _refuse(package: Package) -> None:
    if len(package.lowered.main.files) > 1:
        raise UnusableInput(
            f"{package.title} is cut into parts, which the kit's wrapper does not know. Use fewer bits."
        )
    if _is_decoder(package) and package.recipe_full["variant"] not in (None, "ios18"):
        raise UnusableInput(
            f"{package.title} has no states; the kit's wrapper of language models needs a package for iOS 18."
        )


def _is_decoder(package: Package) -> bool:
    return find_task(package.model.task).kind == GENERATION


def _wrapper(package: Package, name: str) -> str:
    several, shapes = _is_decoder(package), package.lowered.shapes
    function = "configuration.functionName = function" if several else "precondition(function == nil)"
    head = _HEAD.substitute(model=package.model.name, recipe=package.recipe, name=name, function=function)
    if not several:
        return head + _encoder(package)
    prefill = next(graph for graph in package.lowered.graphs if graph.name == "prefill")
    greedy = package.lowered.main.outputs[0].name == "token"
    return head + _DECODER.substitute(
        context=shapes.context_length,
        chunk=prefill.inputs[0].shape[1],
        output="token" if greedy else "logits",
        choice="output[tokens.count - 1].int32Value" if greedy else "mostProbable(output, at: tokens.count - 1)",
        most_probable="" if greedy else _MOST_PROBABLE,
    )


def _encoder(package: Package) -> str:
    lengths = package.lowered.shapes.sequence_lengths
    ports = package.lowered.main.inputs
    swift = {"int32": "Int32", "float16": "Float"}
    features = []
    for port in ports:
        shape = ", ".join(_size(port, axis) for axis in range(len(port.shape)))
        own = camel_case(port.name)
        features += [
            f"        let {own}Array = try MLMultiArray(shape: [{shape}], dataType: .{port.dtype})",
            f"        for index in 0..<{own}.count {{ {own}Array[index] = NSNumber(value: {own}[index]) }}",
            f'        features["{port.name}"] = MLFeatureValue(multiArray: {own}Array)',
        ]
    fixed = "Inputs have one of the lengths " + ", ".join(map(str, lengths)) + "; pad with zeros."
    sizes = " x ".join(map(str, ports[0].shape))
    return _ENCODER.substitute(
        lengths=fixed if len(lengths) > 1 else f"Inputs have the shape {sizes}; pad with zeros.",
        outputs=", ".join(port.name for port in package.lowered.main.outputs),
        parameters=", ".join(f"{camel_case(port.name)}: [{known_type(port, swift)}]" for port in ports),
        features="\n".join(features),
    )


def _size(port: Port, axis: int) -> str:
    """A size as Swift: a number, or what is left of the array where it is free."""
    size = port.shape[axis]
    return f"NSNumber(value: {camel_case(port.name)}.count / {port.shape[0]})" if isinstance(size, str) else str(size)


def _readme(package: Package, name: str) -> str:
    use = (
        f"let model = try await {name}()\nlet new = try model.generate(tokenIds, count: 64) {{ $0 == endOfText }}"
        if _is_decoder(package)
        else f"let model = try await {name}()\nlet outputs = try model("
        + ", ".join(f"{camel_case(port.name)}: ..." for port in package.lowered.main.inputs)
        + ")"
    )
    return f"""# {name}

{package.model.name} as `{package.recipe}`, made by edgec. Licence of the model: {package.model.licence or "not stated"}.

Add this folder to an app as a local Swift package.

```swift
import {name}

{use}
```

Token ids come from the tokenizer's files in `{name}.resources`, which swift-transformers reads
(`AutoTokenizer.from(modelFolder:)`). The model is compiled for the device when it is first loaded.

This text was generated on a machine without Swift; it was not compiled there.
"""
