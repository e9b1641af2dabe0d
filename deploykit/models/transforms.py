"""Training transforms: the user's own, and torchvision's for a recorded preprocessing."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from deploykit.errors import ArchitectureError, InputError, UsageError
from deploykit.models.user_code import UserObject, run_user_code, user_object
from deploykit.specs.preprocessing import Preprocessing
from deploykit.system.deps import need

_ABOUT = (
    "It gets an image as ImageFolder's loader gives it, a PIL image in mode RGB; a function that "
    "takes no argument is called once, to make the transform."
)
_WHOLE = (
    "Name the whole transform, from the image to what the network gets: with ToTensor and "
    f"Normalize, channels first, without a batch dimension. {_ABOUT}"
)
_HALF = (
    "Leave .half() and .bfloat16() out of the transform: they round what comes from the image, and "
    "which precision is deployed is deploykit's to choose."
)


class Transform:
    """What training does to an image.

    Args:
        name: What reports call it.
        apply: From a PIL image in mode RGB to a tensor or array (3, H, W) of floats, or (1, H, W)
            where the network takes grey images.
        code: The object that does it, to be read: a ``Compose`` tells its steps.
    """

    def __init__(
        self, name: str, apply: Callable[[Image.Image], object], code: object = None
    ) -> None:
        self.name = name
        self.code = code
        self._apply = apply

    def __call__(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """Transform an image.

        Args:
            image: A decoded image in mode RGB; stays as it is.

        Returns:
            (3, H, W), contiguous.

        Raises:
            InputError: The transform fails, or gives something else.
        """
        found = self._apply(image.copy())
        if not isinstance(found, torch.Tensor | np.ndarray):
            raise self._unsuitable(f"an object of type {type(found).__name__}")
        dtype, shape = str(found.dtype).removeprefix("torch."), tuple(found.shape)
        given = f"{dtype} of shape {shape}"
        if dtype in ("float16", "bfloat16"):
            raise self._unsuitable(given, _HALF)
        if dtype not in ("float32", "float64") or found.ndim != 3 or 0 in shape:
            raise self._unsuitable(given)
        if shape[0] not in (1, 3):
            raise self._unsuitable(given)
        array = found.detach().cpu().numpy() if isinstance(found, torch.Tensor) else found
        if not np.isfinite(array).all():
            raise self._unsuitable("NaN or infinity")
        # A network of one channel is fed three equal ones.
        return np.ascontiguousarray(np.broadcast_to(array, (3, *shape[1:])), dtype=np.float32)

    def _unsuitable(self, given: str, hint: str = _WHOLE) -> InputError:
        return InputError(
            f"{self.name} gives {given}; the network takes float32 of shape (3, H, W).", hint=hint
        )


def user_transform(name: str) -> Transform:
    """Import the user's own transform.

    Args:
        name: See :func:`deploykit.models.user_code.user_object`. A transform; or a class or a
            function that makes one when it is called without arguments.

    Raises:
        UsageError: There is no such file, module or name.
        ArchitectureError: The code fails, trains or reads data when it is imported.
        InputError: It is no transform, or fails while it makes one.
    """
    found = user_object(name, "transform")
    transform = found.value
    if callable(transform) and _makes_a_transform(transform):
        transform = _run(transform, found)
    if isinstance(transform, Mapping):
        keys = ", ".join(f"{name}.{key}" for key in transform)
        raise UsageError(f"{name} holds several transforms.", hint=f"Name one of them: {keys}.")
    if not callable(transform):
        raise InputError(
            f"{name} is of type {type(transform).__name__}; it does not transform an image.",
            hint=_ABOUT,
        )
    apply = transform
    return Transform(name, lambda image: _run(functools.partial(apply, image), found), apply)


def _makes_a_transform(value: Callable[..., object]) -> bool:
    """Whether a class, or a function that can do without an argument, was named."""
    if inspect.isclass(value):
        return True
    if not inspect.isroutine(value):
        return False
    try:
        inspect.signature(value).bind()
    except TypeError:
        return False
    return True


def _run(step: Callable[[], object], found: UserObject) -> object:
    try:
        return run_user_code(step, found.folder, found.name, "applied")
    except ArchitectureError as exc:
        raise InputError(exc.message, hint=_ABOUT) from exc


def torchvision_transform(preprocessing: Preprocessing) -> Transform:
    """Make torchvision do what a bundle records: a second implementation, which shares no code.

    Raises:
        DependencyError: torchvision is not installed.
    """
    transforms = need("torchvision.transforms")
    resize, mode = preprocessing.resize, transforms.InterpolationMode(preprocessing.interpolation)
    size = resize if isinstance(resize, int) else list(resize)
    steps = [transforms.Grayscale(3)] if preprocessing.grayscale else []
    # torchvision antialiases images of Pillow always, and tensors if it is asked to; of a tensor of
    # floats it rounds no pixel.
    first = []
    if preprocessing.pixels:
        first = [transforms.ToTensor()]
    elif not preprocessing.antialias:
        first = [transforms.PILToTensor()]
    steps += first
    steps.append(transforms.Resize(size, interpolation=mode, antialias=preprocessing.antialias))
    if preprocessing.crop_size is not None:
        steps.append(transforms.CenterCrop(list(preprocessing.crop_size)))
    steps += [
        transforms.ConvertImageDtype(torch.float32) if first else transforms.ToTensor(),
        transforms.Normalize(preprocessing.mean, preprocessing.std),
    ]
    compose = transforms.Compose(steps)
    return Transform("torchvision, with the recorded preprocessing", compose, compose)
