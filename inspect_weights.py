"""Look into saved weights: statistics, filters, norms; and what they get right and wrong.

    python inspect_weights.py modelset/reference/Resnet                    # a run's folder, or a weights file
    python inspect_weights.py modelset/reference/Resnet --evaluate         # on the test images
    python inspect_weights.py modelset/reference/Resnet --images X.npy --labels Y.npy        # on others: CIFAR-10.1
    python inspect_weights.py modelset/reference/Resnet --classify photo.jpg another.png     # on your own pictures
    python inspect_weights.py A.pth --against B.pth                        # two files side by side

Prints a row per parameter tensor and draws weights.png; --against draws weights-against-OTHER.png, --evaluate adds
confusion.png and mistakes.png, --classify prints the likeliest classes and draws classified.png. Pictures go beside the
file, those of the repository's results to the current folder, or to --output. A file alone does not say how images were
normalised in training: --mean and --std do, else those of the model are assumed.

It reads other people's state dicts, too, also of compiled, parallel or averaged models, with a prefix of Lightning's,
or among other things. Nothing in a weights file is executed; the script that the loss.json beside it names is imported
for the model's class.
"""

import argparse
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from cifar10lab.data.loading import CLASSES, DATA_DIR, Data, load_cifar10
from cifar10lab.files.pictures import write_picture
from cifar10lab.files.writing import expanded, printable
from cifar10lab.inspection.models import TrainedModel, trained_model, weights_file
from cifar10lab.inspection.photos import DRAWN, draw_classified, load_test_arrays, read_photo
from cifar10lab.inspection.weights import read_weights
from cifar10lab.results.reference import REFERENCE
from cifar10lab.terminal.arguments import ArgumentParser, HelpFormatter, number_within
from cifar10lab.terminal.errors import UserError
from cifar10lab.terminal.output import make_output_last

NEAR_ZERO = 1e-3  # what "near zero" means in the table, in absolute value


def parameters_of(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The trained tensors, float64: all but BatchNorm's running statistics."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return {name: t.double() for name, t in weights.items() if not name.endswith(statistics) and t.numel()}


def picture(path: Path, draw: Callable[..., None], *arguments: object) -> None:
    """`write_picture`, and print the path if it was written."""
    if write_picture(path, draw, *arguments):
        print(f"wrote {path}")


def print_table(lines: list[list[str]]) -> None:
    """Aligned columns: the first to the left, the others to the right."""
    aligned = ["left", *["right"] * (len(lines[0]) - 1)]
    print(tabulate(lines, tablefmt="plain", disable_numparse=True, colalign=aligned))


def print_statistics(parameters: dict[str, Tensor]) -> None:
    """A row per tensor, and the total."""
    lines = [["name", "shape", "count", "mean", "std", "min", "max", f"|w|<{NEAR_ZERO:g} %", "L2 norm"]]
    everything = torch.cat([tensor.flatten() for tensor in parameters.values()])
    for name, tensor in [*parameters.items(), ("total", everything)]:
        shape = "x".join(map(str, tensor.shape)) if name != "total" else ""
        values = [tensor.mean(), tensor.std(correction=0), tensor.min(), tensor.max()]
        share = 100 * tensor.abs().lt(NEAR_ZERO).float().mean()
        row = [name, shape, f"{tensor.numel():,}", *(f"{value:.4f}" for value in values)]
        lines.append([*row, f"{share:.2f}", f"{tensor.norm():.3f}"])
    print_table(lines)


def compare(first: dict[str, Tensor], arguments: argparse.Namespace, folder: Path) -> None:
    """Norms beside those of `--against`, their ratio, and |a - b| / |a|; a picture. UserError for another model's."""
    path = weights_file(arguments.against)
    second = parameters_of(read_weights(path))
    if {name: t.shape for name, t in first.items()} != {name: t.shape for name, t in second.items()}:
        raise UserError(f"{path} holds other names or shapes: only weights of the same model can be compared")
    lines = [["name", "count", "L2 norm", "of the other", "ratio", "relative difference"]]
    totals = [torch.cat([tensors[name].flatten() for name in first]) for tensors in (first, second)]
    pairs = [*((name, first[name], second[name]) for name in first), ("total", *totals)]
    for name, a, b in pairs:
        norms = a.norm().item(), b.norm().item()
        ratio, difference = (x / norms[0] if norms[0] else np.nan for x in (norms[1], (a - b).norm().item()))
        lines.append([name, f"{a.numel():,}", *(f"{x:.4f}" for x in (*norms, ratio, difference))])
    print_table(lines)
    against = arguments.against.resolve()
    name = against.name if against.is_dir() else against.stem
    names = [printable(arguments.path), printable(arguments.against)]
    picture(folder / f"weights-against-{name}.png", draw_weights, [first, second], names)


def draw_weights(figure: object, sets: list[dict[str, Tensor]], names: list[str]) -> None:
    """The first convolution's filters as RGB tiles, and bars for the root mean square of each layer's weights."""
    from torchvision.utils import make_grid

    first = sets[0]
    layers = [name for name, tensor in first.items() if tensor.ndim > 1] or list(first)
    filters = next((t for t in first.values() if t.ndim == 4 and t.shape[1] == 3), None)
    figure.set(size_inches=(11, 2 + 0.24 * max(8, len(layers))), dpi=110)
    axes = figure.subplots(1, 1 if filters is None else 2, squeeze=False)[0]
    left, right = axes[0], axes[-1]
    if filters is not None:
        left.axis("off")
        grid = make_grid(filters.nan_to_num(0, 0, 0), nrow=8, padding=1, normalize=True, pad_value=1)
        left.imshow(grid.permute(1, 2, 0).numpy())
        of = "the first file's first" if len(sets) > 1 else "the first"
        left.set_title(f"filters of {of} convolution ({len(filters)}, as RGB, all on one scale)", fontsize=10)
    for i, (tensors, name, colour) in enumerate(zip(sets, names, ("#0072B2", "#D55E00"), strict=False)):
        values = [tensors[layer].nan_to_num(0, 0, 0).square().mean().sqrt().item() for layer in layers]
        right.barh(np.arange(len(layers)) + 0.4 * i, values, 0.8 / len(sets), color=colour, label=name)
    right.set_yticks(range(len(layers)), [f"{layer} ({first[layer].numel():,})" for layer in layers], fontsize=9)
    right.invert_yaxis()
    right.set_xlabel("root mean square of a layer's weights")
    right.grid(alpha=0.3, axis="x")
    if len(sets) > 1:
        figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    figure.suptitle(" against ".join(names), fontsize=11)


def logits_of(model: TrainedModel, images: Tensor) -> Tensor:
    """uint8 (N, 3, 32, 32) -> logits float32 (N, 10)."""
    with torch.no_grad():
        return torch.cat([model(batch) for batch in images.split(250)]).float()


def draw_confusion(figure: object, matrix: Tensor, accuracy: float, name: str) -> None:
    """The confusion matrix, int64 (10, 10), row the true class, in % of this class, as a PNG file; accuracy in %."""
    share = 100 * matrix / matrix.sum(1, keepdim=True).clamp_min(1)
    figure.set(size_inches=(9, 8), dpi=90)
    axes = figure.subplots()
    image = axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=100)
    for (row, column), value in np.ndenumerate(share.numpy()):
        colour = "white" if value > 55 else "black"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(10), CLASSES, rotation=45, ha="right")
    axes.set_yticks(range(10), CLASSES)
    axes.set(xlabel="predicted class", ylabel="true class", title=f"{name}: test accuracy {accuracy:.2f} %")
    figure.colorbar(image, label="% of the true class's images", shrink=0.8)


def draw_mistakes(figure: object, images: Tensor, labels: Tensor, probabilities: Tensor, name: str) -> None:
    """The wrongly classified images that the model was surest about."""
    confidence, predictions = probabilities.max(1)
    wrong = (predictions != labels).nonzero().flatten()
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][:32]
    figure.set(size_inches=(13, 8.6), dpi=90)
    places = figure.subplots(4, 8, subplot_kw={"frame_on": False, "xticks": [], "yticks": []}).flat
    for k, axes in zip(worst.tolist(), places, strict=False):
        axes.imshow(images[k].permute(1, 2, 0).numpy())
        true, predicted = CLASSES[labels[k]], CLASSES[predictions[k]]
        axes.set_title(f"true: {true}\npredicted: {predicted}\n({100 * confidence[k]:.1f} % sure)", fontsize=8)
    figure.suptitle(f"{name}: the most confident {len(worst)} of {len(wrong)} mistakes in {len(labels)} test images")


def evaluate(model: TrainedModel, data: Data, path: Path, folder: Path) -> None:
    """Print test loss, accuracy and accuracy per class of `path`'s weights; draw confusion.png and mistakes.png."""
    name = printable(path)[-60:]
    logits, labels = logits_of(model, data.test_images), data.test_labels
    loss, predictions = F.cross_entropy(logits, labels), logits.argmax(1)
    accuracy = 100 * predictions.eq(labels).float().mean().item()
    matrix = torch.bincount(10 * labels + predictions, minlength=100).view(10, 10)
    print(f"\ntest loss {loss:.4f}, test accuracy {accuracy:.2f} % ({len(labels)} images, {data.source})")
    lines = [["class", "accuracy %", "most often taken for"]]
    wrong = matrix - matrix.diag().diag()
    for i, row in enumerate(matrix):
        share = f"{100 * row[i] / row.sum():.2f}" if row.any() else "-"
        lines.append([CLASSES[i], share, CLASSES[wrong[i].argmax()] if wrong[i].any() else "-"])
    print_table(lines)
    picture(folder / "confusion.png", draw_confusion, matrix, accuracy, name)
    picture(folder / "mistakes.png", draw_mistakes, data.test_images, labels, logits.softmax(1), name)


def classify(model: TrainedModel, paths: list[Path], folder: Path) -> bool:
    """Print each picture's three likeliest classes and draw classified.png; whether all pictures could be read."""
    photos = {}
    for path in paths:
        try:
            photos[path] = read_photo(path)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
    if not photos:
        return False
    images = torch.from_numpy(np.stack([small for _, small in photos.values()])).permute(0, 3, 1, 2)
    probabilities = logits_of(model, images).softmax(1)
    lines = [["picture", "likeliest", "second", "third"]]
    for path, row in zip(photos, probabilities, strict=True):
        lines.append(
            [printable(path), *(f"{CLASSES[i]} {100 * row[i]:.1f} %" for i in row.argsort(descending=True)[:3])]
        )
    print_table(lines)
    if len(photos) > DRAWN:
        print(f"classified.png shows the first {DRAWN} of the {len(photos)} pictures")
    picture(folder / "classified.png", draw_classified, photos, probabilities)
    return len(photos) == len(set(paths))


def inspect(arguments: argparse.Namespace) -> bool:
    """Do what the command line asks for; False if a picture to be classified couldn't be read."""
    path = weights_file(arguments.path)
    folder = arguments.output or (Path() if path.resolve().is_relative_to(REFERENCE) else path.parent)  # kept as it is
    weights = read_weights(path, arguments.key)
    parameters = parameters_of(weights)
    if not parameters:
        raise UserError(f"{path} holds no trained tensors")
    if arguments.against:
        compare(parameters, arguments, folder)
    elif not arguments.classify:
        print_statistics(parameters)
        picture(folder / "weights.png", draw_weights, [parameters], [printable(arguments.path)])
    if not arguments.evaluate and not arguments.images and not arguments.classify:
        return True
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        model = trained_model(weights, path, arguments.mean, arguments.std)
    for warning in told:
        print(f"warning: {warning.message}", file=sys.stderr)
    mean, std = (" ".join(map(str, values)) for values in (model.interface.mean, model.interface.std))
    print(f"images are normalised with mean {mean}, std {std}")
    if arguments.evaluate:
        evaluate(model, load_cifar10(arguments.data_dir, test_only=True), arguments.path, folder)
    if arguments.images:
        evaluate(model, load_test_arrays(arguments.images, arguments.labels), arguments.path, folder)
    return classify(model, arguments.classify, folder) if arguments.classify else True


def main() -> None:
    """Exit codes: 0; 1 with a line that says what is wrong; 2 for wrong arguments."""
    make_output_last()
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("path", type=expanded, metavar="FOLDER_OR_FILE", help="a run's folder, or a weights file")
    tested_on = parser.add_mutually_exclusive_group().add_argument
    tested_on("--evaluate", action="store_true", help="load the weights into their model and test it")
    tested_on("--images", type=expanded, metavar="X.npy", help="test it on these instead: uint8 (N, 32, 32, 3)")
    add("--labels", type=expanded, metavar="Y.npy", help="the classes of --images, 0 to 9")
    add("--classify", type=expanded, metavar="PICTURE", nargs="+", help="ask the model what is on your own pictures")
    add("--against", type=expanded, metavar="OTHER", help="a second folder or file, to be put beside the first")
    add("--key", help='which weights of FOLDER_OR_FILE to take if it holds several, such as "ema"')
    channels = {"nargs": 3, "metavar": ("R", "G", "B")}
    add("--mean", type=number_within(float, 0, 1), **channels, help="with which images were normalised in training")
    add("--std", type=number_within(float, 1e-3, math.inf), **channels, help="the standard deviations beside --mean")
    add("--data-dir", type=expanded, metavar="DIR", default=DATA_DIR, help="where CIFAR-10 is")
    add("--output", type=expanded, metavar="DIR", help="where the pictures go")
    arguments = parser.parse_args()
    for one, other in (("mean", "std"), ("images", "labels")):
        if (getattr(arguments, one) is None) != (getattr(arguments, other) is None):
            parser.error(f"--{one} and --{other} belong together: give both")
    try:
        sys.exit(0 if inspect(arguments) else 1)
    except (OSError, UserError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
