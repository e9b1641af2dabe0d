// From a photo's bytes to the network's pixels, as deploykit and Pillow make them.
//
// Images are {data, width, height, channels}: bytes, row by row, without padding.

const COEFFICIENT_BITS = 22; // of Pillow's fixed point: 32, less 8 of a pixel, less 2 of the sum

const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));

/** Pillow's filters: how far each reaches, in pixels, and its weight at a distance. */
const FILTERS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  hamming: [
    1,
    (x) => {
      const far = Math.abs(x);
      // Pillow has these two in single precision.
      const window = Math.fround(0.54) + Math.fround(0.46) * Math.cos(far * Math.PI);
      return far < 1 ? sinc(far) * window : 0;
    },
  ],
  bicubic: [
    2,
    (x) => {
      const a = -0.5;
      const far = Math.abs(x);
      if (far < 1) return ((a + 2) * far - (a + 3)) * far * far + 1;
      return far < 2 ? (((far - 5) * far + 8) * far - 4) * a : 0;
    },
  ],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

/** For each new pixel of an axis the first old one that it is made of, and their weights. */
const weightsOf = (oldLength, newLength, [reach, weigh]) => {
  const scale = oldLength / newLength;
  const stretch = Math.max(1, scale);
  return Array.from({ length: newLength }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach * stretch + 0.5));
    const end = Math.min(oldLength, Math.trunc(centre + reach * stretch + 0.5));
    // Pillow multiplies by the inverse: to divide would round some weights otherwise.
    const parts = Array.from({ length: end - first }, (_, i) =>
      weigh((i + first - centre + 0.5) * (1 / stretch)),
    );
    const total = parts.reduce((sum, part) => sum + part, 0);
    const fixed = parts.map((part) => {
      const exact = (total === 0 ? part : part / total) * 2 ** COEFFICIENT_BITS;
      return Math.trunc(exact + (exact < 0 ? -0.5 : 0.5));
    });
    return { first, weights: Int32Array.from(fixed) };
  });
};

/** Convolve one axis, rounded to bytes. A sample is followed by the next after `step` bytes. */
const convolve = (source, target, axis, lines) => {
  for (let line = 0; line < lines.count; line += 1) {
    for (let place = 0; place < axis.weights.length; place += 1) {
      const { first, weights } = axis.weights[place];
      let from = line * lines.from + first * axis.step;
      let sum = 1 << (COEFFICIENT_BITS - 1);
      for (let i = 0; i < weights.length; i += 1, from += axis.step) {
        sum += source[from] * weights[i];
      }
      target[line * lines.to + place * axis.step] = sum >> COEFFICIENT_BITS; // which is clamped
    }
  }
};

const resizeWidth = ({ data, width, height, channels }, newWidth, filter) => {
  const resized = new Uint8ClampedArray(height * newWidth * channels);
  const axis = { weights: weightsOf(width, newWidth, filter), step: channels };
  const lines = { count: height, from: width * channels, to: newWidth * channels };
  for (let channel = 0; channel < channels; channel += 1) {
    convolve(data.subarray(channel), resized.subarray(channel), axis, lines);
  }
  return { data: resized, width: newWidth, height, channels };
};

const resizeHeight = ({ data, width, height, channels }, newHeight, filter) => {
  const resized = new Uint8ClampedArray(newHeight * width * channels);
  const axis = { weights: weightsOf(height, newHeight, filter), step: width * channels };
  convolve(data, resized, axis, { count: width * channels, from: 1, to: 1 });
  return { data: resized, width, height: newHeight, channels };
};

/** The old pixel of each new one: Pillow adds up the steps, and so their roundings. */
const nearestPlaces = (oldLength, newLength) => {
  const scale = oldLength / newLength;
  const places = new Int32Array(newLength);
  for (let place = 0, at = scale * 0.5; place < newLength; place += 1, at += scale) {
    places[place] = Math.min(oldLength - 1, Math.trunc(at));
  }
  return places;
};

const resizeNearest = ({ data, width, height, channels }, newHeight, newWidth) => {
  const resized = new Uint8ClampedArray(newHeight * newWidth * channels);
  const columns = nearestPlaces(width, newWidth);
  nearestPlaces(height, newHeight).forEach((row, y) => {
    columns.forEach((column, x) => {
      const from = (row * width + column) * channels;
      resized.set(data.subarray(from, from + channels), (y * newWidth + x) * channels);
    });
  });
  return { data: resized, width: newWidth, height: newHeight, channels };
};

/**
 * Resize as Pillow does, one side after the other, with whole bytes between.
 *
 * The width comes first. Since Pillow 13 the height does where it shrinks by more than twice what
 * the width shrinks by, which moves pixels by a grey level.
 */
export const resize = (image, newHeight, newWidth, { interpolation, height_first }) => {
  if (interpolation === "nearest") return resizeNearest(image, newHeight, newWidth);
  const filter = FILTERS[interpolation];
  const toWidth = (each) => (each.width === newWidth ? each : resizeWidth(each, newWidth, filter));
  const toHeight = (each) =>
    each.height === newHeight ? each : resizeHeight(each, newHeight, filter);
  const lost = image.height - newHeight;
  const isTall = height_first && lost > 0 && lost > 2 * (image.width - newWidth);
  return isTall ? toWidth(toHeight(image)) : toHeight(toWidth(image));
};

/** The height and width after the resize: of a longer side, the fraction of a pixel is dropped. */
const resizedSize = ({ width, height }, size, mostPixels) => {
  if (Array.isArray(size)) return size;
  const [shorter, longer] = width < height ? [width, height] : [height, width];
  const length = Math.floor((size * longer) / shorter);
  if (mostPixels !== null && size * length > mostPixels) {
    throw new Error(`${width}x${height} pixels are too extreme a shape to resize.`);
  }
  return height > width ? [length, size] : [size, length];
};

/** Where a centred crop begins; negative where it must be padded. Python's round is to the even. */
const cropStart = (length, crop) => {
  if (length < crop) return -Math.floor((crop - length) / 2);
  const half = Math.floor((length - crop) / 2);
  return (length - crop) % 2 === 1 && half % 2 === 1 ? half + 1 : half;
};

/** The centre, with three channels; what lies outside the image is black. */
const cropped = ({ data, width, height, channels }, [newHeight, newWidth]) => {
  const pixels = new Uint8Array(newHeight * newWidth * 3);
  const top = cropStart(height, newHeight);
  const left = cropStart(width, newWidth);
  for (let y = Math.max(0, -top); y < Math.min(newHeight, height - top); y += 1) {
    for (let x = Math.max(0, -left); x < Math.min(newWidth, width - left); x += 1) {
      const from = ((y + top) * width + x + left) * channels;
      for (let channel = 0; channel < 3; channel += 1) {
        pixels[(y * newWidth + x) * 3 + channel] = data[from + (channels === 1 ? 0 : channel)];
      }
    }
  }
  return pixels;
};

/** Drop the alpha of RGBA, or make it grey with ITU-R 601-2's weights, as `convert("L")` does. */
const withoutAlpha = ({ data, width, height }, grayscale) => {
  const channels = grayscale ? 1 : 3;
  const kept = new Uint8ClampedArray(width * height * channels);
  for (let from = 0, to = 0; to < kept.length; from += 4, to += channels) {
    if (grayscale) {
      const weighed = data[from] * 19595 + data[from + 1] * 38470 + data[from + 2] * 7471;
      kept[to] = (weighed + 0x8000) >> 16;
    } else {
      kept[to] = data[from];
      kept[to + 1] = data[from + 1];
      kept[to + 2] = data[from + 2];
    }
  }
  return { data: kept, width, height, channels };
};

/** RGBA of a decoded photo => the deploy graph's (H, W, 3) bytes. */
export const preprocess = (decoded, preprocessing) => {
  const image = withoutAlpha(decoded, preprocessing.grayscale);
  const [height, width] = resizedSize(image, preprocessing.resize, preprocessing.most_pixels);
  const resized = resize(image, height, width, preprocessing);
  return cropped(resized, preprocessing.input_size);
};

const ascii = (bytes, start, length) =>
  String.fromCharCode(...bytes.subarray(start, start + length));

/** Where the EXIF segment of a JPEG begins, which stands before its pixels. */
const exifOfJpeg = (bytes, view) => {
  for (let at = 2; at + 4 <= bytes.length && bytes[at] === 0xff && bytes[at + 1] !== 0xda; ) {
    if (bytes[at + 1] === 0xe1 && ascii(bytes, at + 4, 4) === "Exif") return at;
    // Any number of 0xff may stand before a marker.
    at += bytes[at + 1] === 0xff ? 1 : 2 + view.getUint16(at + 2);
  }
  return null;
};

const exifOfPng = (bytes, view) => {
  for (let at = 8; at + 12 <= bytes.length; at += 12 + view.getUint32(at)) {
    if (ascii(bytes, at + 4, 4) === "eXIf") return at;
  }
  return null;
};

const exifOfWebp = (bytes, view) => {
  for (let at = 12; at + 8 <= bytes.length; ) {
    if (ascii(bytes, at, 4) === "EXIF") return at;
    const length = view.getUint32(at + 4, true);
    at += 8 + length + (length % 2);
  }
  return null;
};

const without = (bytes, start, end) => {
  const kept = new Uint8Array(bytes.length - (Math.min(end, bytes.length) - start));
  kept.set(bytes.subarray(0, start));
  kept.set(bytes.subarray(end), start);
  return kept;
};

/**
 * A file without its EXIF data, because browsers turn a photo as it says, and training did not.
 *
 * What createImageBitmap takes to leave a photo alone differs between browsers.
 */
export const withoutExif = (bytes) => {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes[0] === 0xff && bytes[1] === 0xd8) {
    const at = exifOfJpeg(bytes, view);
    return at === null ? bytes : withoutExif(without(bytes, at, at + 2 + view.getUint16(at + 2)));
  }
  if (ascii(bytes, 1, 3) === "PNG") {
    const at = exifOfPng(bytes, view);
    return at === null ? bytes : without(bytes, at, at + 12 + view.getUint32(at));
  }
  const at = ascii(bytes, 8, 4) === "WEBP" ? exifOfWebp(bytes, view) : null;
  if (at === null) return bytes;
  // Its header has the length of all, and says that there is EXIF: rename instead of removing.
  const renamed = bytes.slice();
  renamed.set([0x6e, 0x6f, 0x6e, 0x65], at);
  return renamed;
};

/** Decode a file without any change of colours: RGBA; `opaque` tells of pixels without alpha. */
export const decode = async (bytes) => {
  const bitmap = await createImageBitmap(new Blob([withoutExif(bytes)]), {
    colorSpaceConversion: "none",
    premultiplyAlpha: "none",
  });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  let opaque = true;
  for (let at = 3; opaque && at < data.length; at += 4) opaque = data[at] === 255;
  return { data, width, height, opaque };
};
