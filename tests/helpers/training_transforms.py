"""Training transforms for 16x16 images, each with one thing done otherwise than the bundle does."""

TRANSFORMS = """
import torch
from PIL import ImageOps
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pipeline(*steps, mean=MEAN, std=STD):
    return T.Compose([*steps, T.ToTensor(), T.Normalize(mean, std)])


STRETCH = T.Resize([16, 16])
same = pipeline(STRETCH)
std = pipeline(STRETCH, std=(0.5, 0.5, 0.5))
mean = pipeline(STRETCH, mean=(0.5, 0.5, 0.5))
bgr = T.Compose([STRETCH, T.ToTensor(), T.Lambda(lambda x: x[[2, 1, 0]]), T.Normalize(MEAN, STD)])
bgr_at_last = T.Compose([same, T.Lambda(lambda x: x[[2, 1, 0]])])
grey = pipeline(STRETCH, T.Grayscale(3))
bicubic = pipeline(T.Resize([16, 16], interpolation=InterpolationMode.BICUBIC))
crop = pipeline(T.Resize(18), T.CenterCrop(16))
plain_crop = pipeline(T.CenterCrop(16))
upright = pipeline(T.Lambda(ImageOps.exif_transpose), STRETCH)
unsmoothed = T.Compose([T.ToTensor(), T.Resize([16, 16], antialias=False), T.Normalize(MEAN, STD)])
floating = T.Compose([T.ToTensor(), T.Resize([16, 16]), T.Normalize(MEAN, STD)])
several = pipeline(T.Resize(256), T.CenterCrop(16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
gamma = pipeline(STRETCH, T.Lambda(lambda image: T.functional.adjust_gamma(image, 2.0)))
mirrored = pipeline(STRETCH, T.RandomHorizontalFlip(p=1.0))
grey_at_first = pipeline(T.Grayscale(3), STRETCH)
doubled = T.Compose([same, T.Lambda(lambda x: x.double())])
flipping = pipeline(STRETCH, T.RandomHorizontalFlip())
uneven = pipeline(T.Resize(16))
bytes_only = T.Compose([STRETCH, T.PILToTensor()])
larger = pipeline(T.Resize([32, 32]))
by_split = {"train": flipping, "val": same}


def direct(image):
    return same(image).numpy()


def build(size=16):
    return pipeline(T.Resize([size, size]))


class Preset:
    def __call__(self, image):
        return same(image)


def failing(image):
    raise ValueError("no such photo")
"""
