// Runs in the audio thread: hands the microphone's sound over in blocks of equal length.

class MicrophoneProcessor extends AudioWorkletProcessor {
  constructor({ processorOptions }) {
    super();
    this.block = new Float32Array(processorOptions.blockLength);
    this.filled = 0;
  }

  process([channels], [output]) {
    // A microphone that was pulled out has no channel; the session's clock goes on in silence.
    const length = output[0].length;
    for (let i = 0; i < length; i++) {
      this.block[this.filled++] = channels.length ? channels[0][i] : 0;
      if (this.filled === this.block.length) {
        const full = this.block;
        this.block = new Float32Array(full.length);
        this.port.postMessage(full, [full.buffer]);
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("microphone", MicrophoneProcessor);
