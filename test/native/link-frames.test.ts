/** The daemon's side of the link (native/link/frames.md); frames_test.cpp is the other one, with the same vectors. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { BobbinError } from '../../daemon/model/index.js'
import {
  decodeFrame,
  encodeFrame,
  FRAME_HEADER_BYTES,
  FrameReader,
  type FromFuse,
  type ToFuse,
} from '../../daemon/mount/link-frames.js'
import type { ObjectId } from '../../daemon/store/index.js'
import { repository } from '../support/parts.js'

const vectors = readFileSync(join(repository, 'native/link/vectors.txt'), 'utf8')
  .split('\n')
  .map(line => /^(daemon|fuse) (\w+) (.*)$/.exec(line))
  .filter(match => match !== null)
  .map(([, from, hex, text]) => ({ from: from!, frame: Buffer.from(hex!, 'hex'), text: text! }))
const fromFuse = vectors.filter(vector => vector.from === 'fuse')
const toFuse = vectors.filter(vector => vector.from === 'daemon')

function id(folder: string, firstByte: number): ObjectId {
  const bytes = Buffer.from(Array.from({ length: 32 }, (_, i) => firstByte + i))
  return `${folder}/${bytes.toString('hex')}` as ObjectId
}

const ONE = {
  id: id('sha256', 0),
  inode: 1_234_567n,
  size: 3000n,
  mtimeNs: 1_700_000_000_123_456_789n,
  ctimeNs: 1_700_000_001_000_000_000n,
}
const OTHER = {
  id: id('crc64nvme', 200),
  inode: 2n ** 40n,
  size: 2n ** 53n - 1n,
  mtimeNs: -1n,
  ctimeNs: 0n,
}
const PATHS = {
  mountpoint: '/mnt/ä',
  source: 'bobbin',
  index: '/cache/index',
  manifest: '/cache/manifest',
  registry: 's3://bucket',
  package: 'ns/pkg',
}

/** What the vectors from the daemon say, in their order. */
const FRAMES: readonly ToFuse[] = [
  { kind: 'hello', version: 5, pid: 4321, program: 'bobbin 0.1.0' },
  { kind: 'ready', request: 7, object: ONE },
  { kind: 'failed', request: Number.MAX_SAFE_INTEGER, errno: 5 },
  { kind: 'working', requests: [1, 2, 3] },
  { kind: 'working', requests: [] },
  { kind: 'known', objects: [ONE, OTHER] },
  { kind: 'evictAsk', request: 8, ids: [id('sha2-256-chunked', 3), id('sha256', 9)] },
  {
    ...{ kind: 'mount', request: 9, uid: 1000, gid: 100, umask: 0o22, allowOther: true, openMode: 'passthrough' },
    listAttributes: true,
    ...{ timeNs: -5n, ...PATHS, message: 'a message', note: '{"note":1}', caller: 7 },
  },
  {
    ...{ kind: 'mount', request: 10, uid: 0, gid: 0, umask: 0, allowOther: false, openMode: 'auto' },
    listAttributes: false,
    ...{ timeNs: 1_700_000_000_000_000_000n, ...PATHS, message: undefined, note: '', caller: 0 },
  },
  { kind: 'unmount', request: 11, mount: 3, isForced: true },
  { kind: 'index', mount: 3, index: '/cache/index2', manifest: '/cache/manifest2' },
  { kind: 'stop' },
  { kind: 'statsAsk', request: 12 },
  { kind: 'logged', mount: 3, count: Number.MAX_SAFE_INTEGER },
  { kind: 'answer', caller: 7, line: '{"a": 1 }' },
  { kind: 'serving' },
  { kind: 'keep', text: '{"environment":{}}' },
]

const plain = (frame: FromFuse) =>
  frame.kind === 'access' ? { ...frame, records: frame.records.toString('hex') } : frame

t.test('encodeFrame writes what the vectors say', t => {
  t.equal(FRAMES.length, toFuse.length)
  for (const [i, frame] of FRAMES.entries())
    t.equal(encodeFrame(frame).toString('hex'), toFuse[i]!.frame.toString('hex'), frame.kind)
  t.end()
})

t.test('FrameReader reads what the vectors say, in pieces of any size', t => {
  const stream = Buffer.concat(fromFuse.map(({ frame }) => frame))
  const expected = fromFuse.map(({ text }) => JSON.parse(text) as unknown)
  for (const pieceBytes of [1, 2, 3, 7, 8, 9, 64, stream.length]) {
    const reader = new FrameReader()
    const frames = []
    for (let at = 0; at < stream.length; at += pieceBytes)
      frames.push(...[...reader.push(stream.subarray(at, at + pieceBytes))].map(plain))
    t.strictSame(frames, expected, `pieces of ${pieceBytes}`)
  }
  t.end()
})

t.test('decodeFrame refuses frames that are cut, too long or of an unknown kind', t => {
  for (const { frame, text } of fromFuse) {
    const kind = frame.readUInt16LE(4)
    const payload = frame.subarray(FRAME_HEADER_BYTES)
    const isRefused = (bytes: number) => {
      try {
        decodeFrame(kind, payload.subarray(0, bytes))
        return false
      } catch (error) {
        return error instanceof BobbinError && error.code === 'INTERNAL'
      }
    }
    t.ok(
      Array.from(payload.keys()).every(bytes => isRefused(bytes)),
      `${text} cut anywhere`,
    )
    t.throws(
      () => decodeFrame(kind, Buffer.concat([payload, Buffer.alloc(1)])),
      { code: 'INTERNAL' },
      'a byte too many',
    )
  }
  for (const kind of [0, 15, 32, 40, 65_535])
    t.throws(() => decodeFrame(kind, Buffer.alloc(0)), { code: 'INTERNAL' }, `kind ${kind}`)
  t.end()
})

t.test('FrameReader gives up a stream that cannot be frames', t => {
  const frame = Buffer.alloc(FRAME_HEADER_BYTES)
  frame.writeUInt32LE(4 * 2 ** 20 + 1)
  t.throws(() => [...new FrameReader().push(frame)], { code: 'INTERNAL' })
  t.end()
})
