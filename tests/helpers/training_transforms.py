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
own_values = pipeline(STRETCH, mean=(0.51, 0.47, 0.43), std=(0.25, 0.26, 0.27))
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
BRIGHTER = T.Lambda(lambda image: T.functional.adjust_gamma(image, 2.0))
gamma = pipeline(STRETCH, BRIGHTER)
mirrored_gamma = pipeline(STRETCH, BRIGHTER, T.RandomHorizontalFlip(p=1.0))
mirrored = pipeline(STRETCH, T.RandomHorizontalFlip(p=1.0))
upside_down = pipeline(T.RandomVerticalFlip(p=1.0), STRETCH, mean=(0.5, 0.5, 0.5))
turned = pipeline(STRETCH, T.Lambda(lambda image: image.rotate(180)))
grey_at_first = pipeline(T.Grayscale(3), STRETCH)
one_channel = T.Compose([STRETCH, T.Grayscale(1), T.ToTensor(), T.Normalize((0.5,), (0.5,))])
halved = T.Compose([same, T.Lambda(lambda x: x.half())])
brain_float = T.Compose([same, T.Lambda(lambda x: x.bfloat16())])
doubled = T.Compose([same, T.Lambda(lambda x: x.double())])
channels_last = T.Compose([same, T.Lambda(lambda x: x.permute(1, 2, 0))])
image_only = STRETCH
flipping = pipeline(STRETCH, T.RandomHorizontalFlip())
uneven = pipeline(T.Resize(16))
bytes_only = T.Compose([STRETCH, T.PILToTensor()])
batched = T.Compose([same, T.Lambda(lambda x: x[None])])
larger = pipeline(T.Resize([32, 32]))
by_split = {"train": flipping, "val": same}


class Rarely:
    '''Erases a corner of one photo in a hundred.'''

    calls = 0

    def __call__(self, image):
        self.calls += 1
        found = same(image)
        if self.calls % 100 == 0:
            found[:, :4, :4] = 0
        return found


def mapping(image):
    return {"image": same(image)}


def direct(image):
    return same(image).numpy()


def build(size=16):
    return pipeline(T.Resize([size, size]))


class Preset:
    def __call__(self, image):
        return same(image)


def failing(image):
    raise ValueError("no such photo")


def nothing(image):
    return None


number = 3
"""
