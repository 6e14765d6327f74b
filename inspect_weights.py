"""Look into saved weights: statistics, filters, histograms; and what they get right and wrong.

    python inspect_weights.py modelset/Resnet                    # a run's folder, or a weights file
    python inspect_weights.py modelset/Resnet --evaluate         # on the test images
    python inspect_weights.py modelset/Resnet --classify photo.jpg another.png     # on your own pictures
    python inspect_weights.py A.pth --against B.pth              # two files side by side

Prints a row per parameter tensor and draws weights.png beside the file; --against draws
weights-against-OTHER.png, --evaluate adds confusion.png and mistakes.png, --classify prints the
likeliest classes and draws classified.png. It reads what other scripts saved, too: state dicts in
any float type, as compiled, parallel or averaged models have them, or with a prefix of Lightning's,
and in a dictionary with other things. Nothing in a file is executed.
"""

from __future__ import annotations

import argparse
import io
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cifar10.loading import CLASSES, DATA_DIR, load_cifar10
from files.writing import write_file
from inspection.models import TrainedModel, recognise, weights_file
from inspection.photos import ROWS, draw_classified, read_photo
from inspection.weights import read_weights, warn_of_non_finite
from terminal.arguments import ArgumentParser, HelpFormatter
from terminal.errors import UserError
from terminal.output import make_output_last

NEAR_ZERO = 1e-3  # what "near zero" means in the table, in absolute value


def parameters_of(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The trained tensors: all but BatchNorm's running statistics."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return {name: tensor for name, tensor in weights.items() if not name.endswith(statistics) and tensor.numel()}


# --- Statistics -------------------------------------------------------------------------------


def print_table(lines: list[list[str]]) -> None:
    """Aligned columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for name, *cells in lines:
        numbers = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        print("  ".join([f"{name:{widths[0]}}", *numbers]))


def print_statistics(parameters: dict[str, Tensor]) -> None:
    """A row per tensor, and the total."""
    near_zero = f"|w|<{NEAR_ZERO:g} %"
    lines = [["name", "shape", "count", "mean", "std", "min", "max", near_zero, "L2 norm"]]
    everything = torch.cat([tensor.flatten() for tensor in parameters.values()])
    for name, tensor in [*parameters.items(), ("total", everything)]:
        shape = "x".join(map(str, tensor.shape)) if name != "total" else ""
        values = [tensor.mean(), tensor.std(correction=0), tensor.min(), tensor.max()]
        share = 100 * tensor.abs().lt(NEAR_ZERO).float().mean()
        row = [name, shape, f"{tensor.numel():,}", *(f"{value:.4f}" for value in values)]
        lines.append([*row, f"{share:.2f}", f"{tensor.norm():.3f}"])
    print_table(lines)


def print_comparison(ours: dict[str, Tensor], theirs: dict[str, Tensor], path: Path) -> None:
    """Per tensor the two norms, their ratio, and the relative difference |a - b| / |a|."""
    if {n: t.shape for n, t in ours.items()} != {n: t.shape for n, t in theirs.items()}:
        raise UserError(f"{path} holds other names or shapes: only weights of the same model can be compared")
    lines = [["name", "count", "L2 norm", "of the other", "ratio", "relative difference"]]
    totals = [torch.cat([t.flatten() for t in parameters.values()]) for parameters in (ours, theirs)]
    pairs = [*((name, ours[name], theirs[name]) for name in ours), ("total", *totals)]
    for name, a, b in pairs:
        norms = a.norm().item(), b.norm().item()
        ratio, difference = (x / norms[0] if norms[0] else np.nan for x in (norms[1], (a - b).norm().item()))
        lines.append([name, f"{a.numel():,}", *(f"{x:.4f}" for x in (*norms, ratio, difference))])
    print_table(lines)


def draw_weights(parameters: dict[str, Tensor], other: dict[str, Tensor] | None, names: list[str]) -> bytes:
    """The first convolution's filters as RGB tiles, and a histogram of each layer's weights."""
    from matplotlib.figure import Figure

    layers = [name for name, tensor in parameters.items() if tensor.ndim > 1] or list(parameters)
    filters = next((t for t in parameters.values() if t.ndim == 4 and t.shape[1] == 3), None)
    rows, count = -(-len(layers) // 4), 1 if filters is None else len(filters)
    heights = [1 + 14 / min(16, max(8, count)) * -(-count // 16), 2.2 * rows]
    figure = Figure(figsize=(14, sum(heights)), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=heights)
    axes = top.subplots()
    axes.axis("off")
    if filters is not None:
        filters = filters.nan_to_num(0, 0, 0)
        axes.imshow(tiles((filters - filters.min()) / (filters.max() - filters.min()).clamp_min(1e-12)))
        axes.set_title(f"filters of the first convolution ({len(filters)}, as RGB, all on one scale)")
    panels = list(bottom.subplots(rows, 4, squeeze=False).flat)
    for axes, layer in zip(panels, layers, strict=False):
        sets = [tensor[tensor.isfinite()] for tensor in (parameters[layer], *([other[layer]] if other else []))]
        reach = max(t.abs().max().item() if len(t) else 0 for t in sets) or 1.0
        edges = np.linspace(-reach, reach, 61)
        for tensor, name, colour, fill in zip(sets, names, ("#0072B2", "#D55E00"), (True, False), strict=False):
            style = {"histtype": "stepfilled" if fill else "step", "alpha": 0.6 if fill else 1, "color": colour}
            axes.hist(tensor.numpy(), edges, label=name, **style)
        axes.set_title(f"{layer} ({parameters[layer].numel():,})", fontsize=9)
        axes.tick_params(labelsize=7)
        axes.set_yticks([])
    for axes in panels[len(layers) :]:
        axes.axis("off")
    bottom.supxlabel("weight (height: how many have that value)", fontsize=9)
    if other:
        handles, labels = next(iter(bottom.axes)).get_legend_handles_labels()
        bottom.legend(handles, labels, loc="outside upper center", ncols=2, fontsize=9)
    figure.suptitle(" against ".join(names))
    return png(figure)


def tiles(images: Tensor, columns: int = 16, margin: int = 1) -> np.ndarray:
    """(N, 3, H, W) from 0 to 1 -> one picture (rows, columns, 3), white between the tiles."""
    images = F.pad(images, (0, margin, 0, margin), value=1.0)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    images = torch.cat([images, torch.ones(rows * columns - len(images), *images.shape[1:])])
    grid = images.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2)
    return grid.flatten(2, 3).flatten(0, 1).numpy()


def png(figure: object) -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a file's name may be in any script
        figure.savefig(content, format="png", dpi=90)
    return content.getvalue()


# --- Evaluation -------------------------------------------------------------------------------


def logits_of(model: TrainedModel, images: Tensor) -> Tensor:
    """uint8 (N, 3, 32, 32) -> logits float32 (N, 10)."""
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in images.split(250)])


def confusion_matrix(labels: Tensor, predictions: Tensor) -> Tensor:
    """int64 (10, 10): row the true class, column the predicted one."""
    return torch.bincount(10 * labels + predictions, minlength=100).view(10, 10)


def draw_confusion(matrix: Tensor, accuracy: float) -> bytes:
    from matplotlib.figure import Figure

    share = 100 * matrix / matrix.sum(1, keepdim=True).clamp_min(1)
    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    for row in range(10):
        for column in range(10):
            colour = "white" if share[row, column] > 55 else "black"
            axes.text(column, row, f"{share[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(10), CLASSES, rotation=45, ha="right")
    axes.set_yticks(range(10), CLASSES)
    axes.set(xlabel="predicted class", ylabel="true class", title=f"test accuracy {accuracy:.2f} %")
    figure.colorbar(image, label="% of the true class's images", shrink=0.8)
    return png(figure)


def draw_mistakes(images: Tensor, labels: Tensor, probabilities: Tensor) -> bytes:
    """The wrongly classified images that the model was surest about."""
    from matplotlib.figure import Figure

    confidence, predictions = probabilities.max(1)
    wrong = (predictions != labels).nonzero().flatten()
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][:32]
    figure = Figure(figsize=(13, 8.6), layout="constrained")
    for i, axes in enumerate(figure.subplots(4, 8).flat):
        axes.axis("off")
        if i < len(worst):
            k = int(worst[i])
            axes.imshow(images[k].permute(1, 2, 0))
            true, predicted = CLASSES[labels[k]], CLASSES[predictions[k]]
            axes.set_title(f"true: {true}\npredicted: {predicted}\n({100 * confidence[k]:.1f} % sure)", fontsize=8)
    figure.suptitle(f"most confidently wrong: {len(worst)} of {len(wrong)} mistakes in {len(labels)} test images")
    return png(figure)


def evaluate(model: TrainedModel, data_dir: Path, folder: Path) -> None:
    """Print test loss, accuracy and accuracy per class; draw confusion.png and mistakes.png."""
    data = load_cifar10(data_dir)
    logits, labels = logits_of(model, data.test_images), data.test_labels
    loss, predictions = F.cross_entropy(logits, labels), logits.argmax(1)
    accuracy = 100 * predictions.eq(labels).float().mean().item()
    matrix = confusion_matrix(labels, predictions)
    print(f"\ntest loss {loss:.4f}, test accuracy {accuracy:.2f} % ({len(labels)} images, {data.source})")
    print_table(
        [["class", "accuracy %", "most often taken for"]]
        + [
            [name, f"{100 * row[i] / max(1, row.sum()):.2f}", CLASSES[row.index_fill(0, torch.tensor(i), -1).argmax()]]
            for i, (name, row) in enumerate(zip(CLASSES, matrix, strict=True))
        ]
    )
    write_picture(folder / "confusion.png", draw_confusion(matrix, accuracy))
    write_picture(folder / "mistakes.png", draw_mistakes(data.test_images, labels, logits.softmax(1)))


# --- Photos -----------------------------------------------------------------------------------


def classify(model: TrainedModel, paths: list[Path], folder: Path) -> bool:
    """Print each picture's three likeliest classes and draw classified.png; whether all of them could be read."""
    photos = {}
    for path in paths:
        try:
            photos[path] = read_photo(path)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
    if photos:
        images = torch.from_numpy(np.stack([small for _, small in photos.values()])).permute(0, 3, 1, 2)
        probabilities = logits_of(model, images).softmax(1)
        names = [str(path).encode(errors="replace").decode() for path in photos]
        lines = [["picture", "likeliest", "second", "third"]]
        for name, row in zip(names, probabilities, strict=True):
            lines.append([name, *(f"{CLASSES[i]} {100 * row[i]:.1f} %" for i in row.argsort(descending=True)[:3])])
        print_table(lines)
        write_picture(folder / "classified.png", png(draw_classified(names, list(photos.values()), probabilities)))
        if len(photos) > ROWS:
            print(f"of the {len(photos)} pictures, it shows the first {ROWS}")
    return len(photos) == len(set(paths))


def write_picture(path: Path, content: bytes) -> None:
    write_file(path, content)
    print(f"wrote {path}")


def compare(parameters: dict[str, Tensor], arguments: argparse.Namespace, path: Path) -> None:
    """The file's parameters beside those of `--against`: a table, and a picture of its own."""
    other_path = weights_file(arguments.against)
    other = read_weights(other_path)
    warn_of_non_finite(other, other_path)
    other = parameters_of(other)
    print_comparison(parameters, other, other_path)
    against = arguments.against.resolve()
    name = against.name if against.is_dir() else against.stem
    picture = draw_weights(parameters, other, [str(arguments.path), str(arguments.against)])
    write_picture(path.parent / f"weights-against-{name}.png", picture)


def inspect(arguments: argparse.Namespace) -> bool:
    """All that the command line asks for; whether all pictures to be classified could be read."""
    path = weights_file(arguments.path)
    weights = read_weights(path, arguments.key)
    warn_of_non_finite(weights, path)
    parameters = parameters_of(weights)
    if not parameters:
        raise UserError(f"{path} holds no trained tensors")
    if arguments.against:
        compare(parameters, arguments, path)
    elif not arguments.classify:
        print_statistics(parameters)
        write_picture(path.parent / "weights.png", draw_weights(parameters, None, [str(arguments.path)]))
    if not arguments.evaluate and not arguments.classify:
        return True
    model = TrainedModel(recognise(weights, path))
    if arguments.evaluate:
        evaluate(model, arguments.data_dir, path.parent)
    return classify(model, arguments.classify or [], path.parent)


def main() -> None:
    make_output_last()
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("path", type=Path, metavar="FOLDER_OR_FILE", help="a run's folder, or a weights file")
    add("--evaluate", action="store_true", help="load the weights into their model and test it")
    add("--classify", type=Path, metavar="PICTURE", nargs="+", help="ask the model what is on your own pictures")
    add("--against", type=Path, metavar="OTHER", help="a second folder or file, to be put beside the first")
    add("--key", help='which weights of FOLDER_OR_FILE to take if it holds several, such as "ema"')
    add("--data-dir", type=Path, metavar="DIR", default=DATA_DIR, help="where CIFAR-10 is")
    try:
        sys.exit(0 if inspect(parser.parse_args()) else 1)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
