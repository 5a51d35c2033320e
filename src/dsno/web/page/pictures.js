/** Samples as pictures: arrays (C, H, W) in [-1, 1], grey or in colours, to canvases and PNG files. */

/** The least side of a saved picture, which is its pixels a whole number of times. */
const SAVED = 512;

/** -1 to 1 as 0 to 255, rounded to nearest and clamped. */
const level = (value) => Math.round((Math.max(-1, Math.min(1, value)) + 1) * 127.5);

/** The levels of all pixels of a sample, as a picture file has them. */
export const levels = (x) => Uint8Array.from(x, level);

/** The pixels of the sample at `row` of an array of samples. */
export function pixels(x, [channels, height, width], row = 0) {
  const image = new ImageData(width, height);
  const plane = height * width;
  const first = row * channels * plane;
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = level(x[first + Math.min(c, channels - 1) * plane + i]);
    image.data[4 * i + 3] = 255;
  }
  return image;
}

/** Paints a sample as the whole of a canvas. */
export function paint(canvas, x, shape, row = 0) {
  const [, height, width] = shape;
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(pixels(x, shape, row), 0, 0);
}

/** Paints a sample whose hidden pixels, 0 in `keep` (H, W), are as opaque as said, of 255; below is the page's own. */
export function paintHidden(canvas, x, keep, opacity, shape) {
  const [, height, width] = shape;
  [canvas.width, canvas.height] = [width, height];
  const image = pixels(x, shape);
  for (let i = 0; i < height * width; i++) if (!keep[i]) image.data[4 * i + 3] = opacity;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Saves a canvas as a PNG, its pixels enlarged by a whole factor. */
export function save(canvas, name) {
  const factor = Math.max(1, Math.ceil(SAVED / Math.min(canvas.width, canvas.height)));
  const large = document.createElement("canvas");
  [large.width, large.height] = [factor * canvas.width, factor * canvas.height];
  const context = large.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(canvas, 0, 0, large.width, large.height);
  large.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }, "image/png");
}
