// Plays a clip while it is being made: the fragments of a watched generation, over gRPC-Web, into a media source.

const WATCH = "/rushes.v1.GenerationService/WatchGeneration";

// Field numbers of rushes.v1 (see protos/rushes/v1).
const RESPONSE_EVENT = 1;
const EVENT = { rendering: 12, fragment: 14, succeeded: 17, failed: 18, cancelled: 19 };
const RENDER_ACCEPTED_CONTENT_TYPE = 6;
const FRAGMENT = { data: 3, lastPart: 4, frameCount: 6 };

const TRAILERS = 0x80;
const FRAME_HEADER = 5;

// The fields of a serialised message, in order: [number, value], where a value is a BigInt or the bytes of the field.
export function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = bytes[at++];
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
  };
  while (at < bytes.length) {
    const key = Number(varint());
    const kind = key & 7;
    if (kind === 0) yield [key >> 3, varint()];
    else if (kind === 1) yield [key >> 3, bytes.subarray(at, (at += 8))];
    else if (kind === 5) yield [key >> 3, bytes.subarray(at, (at += 4))];
    else if (kind === 2) {
      const length = Number(varint());
      yield [key >> 3, bytes.subarray(at, (at += length))];
    } else throw new Error(`a field of an unknown kind, ${kind}`);
  }
}

// The last value of one field; undefined where it is not set.
function field(bytes, number) {
  let found;
  for (const [key, value] of fields(bytes)) if (key === number) found = value;
  return found;
}

function joined(parts) {
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

// The messages of a server stream over gRPC-Web, as bytes. Throws an Error for a status that is not OK.
export async function* stream(url, message, headers, signal) {
  const framed = new Uint8Array(FRAME_HEADER + message.length);
  new DataView(framed.buffer).setUint32(1, message.length);
  framed.set(message, FRAME_HEADER);
  const response = await fetch(url, {
    method: "POST",
    headers: { "content-type": "application/grpc-web+proto", "x-grpc-web": "1", ...headers },
    body: framed,
    signal,
  });
  refuse(response.headers.get("grpc-status"), response.headers.get("grpc-message"));
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
  const reader = response.body.getReader();
  let waiting = new Uint8Array(0);
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    waiting = joined([waiting, value]);
    while (waiting.length >= FRAME_HEADER) {
      const size = new DataView(waiting.buffer, waiting.byteOffset).getUint32(1);
      if (waiting.length < FRAME_HEADER + size) break;
      const body = waiting.slice(FRAME_HEADER, FRAME_HEADER + size);
      if (waiting[0] & TRAILERS) {
        const trailers = new TextDecoder().decode(body);
        refuse(/grpc-status:\s*(\d+)/i.exec(trailers)?.[1], /grpc-message:\s*(.*)/i.exec(trailers)?.[1]);
      } else yield body;
      waiting = waiting.slice(FRAME_HEADER + size);
    }
  }
}

function refuse(status, message) {
  if (status && status !== "0") throw new Error(`gRPC status ${status}: ${decodeURIComponent(message ?? "")}`);
}

// A media source that takes fragments one after the other, each when the one before it is in.
export class FragmentPlayer {
  constructor(video) {
    this.video = video;
    this.source = new MediaSource();
    video.src = URL.createObjectURL(this.source);
    this.opened = new Promise((resolve) => this.source.addEventListener("sourceopen", resolve, { once: true }));
  }

  async begin(contentType) {
    if (!MediaSource.isTypeSupported(contentType)) throw new Error(`this browser does not play ${contentType}`);
    await this.opened;
    this.buffer = this.source.addSourceBuffer(contentType);
  }

  async append(bytes) {
    const done = new Promise((resolve, reject) => {
      this.buffer.addEventListener("updateend", resolve, { once: true });
      this.buffer.addEventListener("error", () => reject(new Error("a fragment cannot be played")), { once: true });
    });
    this.buffer.appendBuffer(bytes);
    await done;
  }

  end() {
    this.source.endOfStream();
  }
}

// Plays the clip of a generation in `video` from its first fragment on. Calls `onFragment` with the frames of each
// fragment that is in; a clip that is made again starts over. Returns when the last one is; throws when the generation does not succeed.
export async function play(video, { endpoint, generation, apiKey, onFragment, signal }) {
  const id = new TextEncoder().encode(generation);
  const request = joined([Uint8Array.of(0x0a, id.length), id]);
  const headers = apiKey ? { authorization: `Bearer ${apiKey}` } : {};
  let player = new FragmentPlayer(video);
  let parts = [];
  let begun = false;
  for await (const response of stream(endpoint + WATCH, request, headers, signal)) {
    for (const [number, body] of fields(field(response, RESPONSE_EVENT))) {
      if (number === EVENT.rendering) {
        // Another take, or a renderer that gave other bytes: what is in the player is of no clip.
        if (begun) player = new FragmentPlayer(video);
        [begun, parts] = [true, []];
        await player.begin(new TextDecoder().decode(field(body, RENDER_ACCEPTED_CONTENT_TYPE)));
      } else if (number === EVENT.fragment) {
        parts.push(field(body, FRAGMENT.data));
        if (field(body, FRAGMENT.lastPart)) {
          await player.append(joined(parts));
          parts = [];
          onFragment?.(Number(field(body, FRAGMENT.frameCount) ?? 0n));
        }
      } else if (number === EVENT.succeeded) {
        player.end();
        return;
      } else if (number === EVENT.failed || number === EVENT.cancelled) {
        throw new Error("the generation did not succeed");
      }
    }
  }
}
