// Sound as numbers: float32 within -1..1, 16-bit samples, base64, WAV. No DOM in here.

/** Rate of all sound between page and server, Hz. */
export const SAMPLE_RATE = 24_000;

/** float32 [n] to 16-bit samples; what is louder than full scale is cut off. */
export function toPcm16(samples) {
  const pcm = new Int16Array(samples.length);
  for (let i = 0; i < samples.length; i++) {
    pcm[i] = Math.max(-32_768, Math.min(32_767, Math.round(samples[i] * 32_768)));
  }
  return pcm;
}

/** 16-bit samples to float32 [n]; toPcm16 gives the same samples back. */
export function fromPcm16(pcm) {
  return Float32Array.from(pcm, (sample) => sample / 32_768);
}

/** 16-bit samples as the protocol carries them: base64 of little-endian bytes. */
export function encodeBase64(pcm) {
  const bytes = new Uint8Array(pcm.length * 2);
  const view = new DataView(bytes.buffer);
  pcm.forEach((sample, i) => view.setInt16(2 * i, sample, true));
  let text = "";
  // A call takes only so many arguments.
  for (let at = 0; at < bytes.length; at += 8192) {
    text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  }
  return btoa(text);
}

/** The reverse of encodeBase64; half a sample at the end is dropped. */
export function decodeBase64(base64) {
  const text = atob(base64);
  const pcm = new Int16Array(text.length >> 1);
  for (let i = 0; i < pcm.length; i++) {
    pcm[i] = text.charCodeAt(2 * i) | (text.charCodeAt(2 * i + 1) << 8);
  }
  return pcm;
}

/** How much of an answer was heard, whole milliseconds, never more than was played. */
export function playedMs(samples, rate = SAMPLE_RATE) {
  return Math.floor((samples * 1000) / rate);
}

/** A WAV file of 16-bit channels; shorter ones are filled with silence. */
export function encodeWav(channels, rate) {
  const frames = Math.max(...channels.map((channel) => channel.length));
  const size = frames * channels.length * 2;
  const view = new DataView(new ArrayBuffer(44 + size));
  const text = (at, word) => [...word].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + size, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, channels.length, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, rate * channels.length * 2, true);
  view.setUint16(32, channels.length * 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, size, true);
  channels.forEach((channel, c) =>
    channel.forEach((sample, i) => view.setInt16(44 + 2 * (i * channels.length + c), sample, true)),
  );
  return view.buffer;
}
