/**
 * What every `RegistryWriter` must do (daemon/model/registry-writer.ts): run it for another one by calling
 * `testRegistryWriter` with a place of its own.
 */
import { createHash } from 'node:crypto'
import type { Test } from 'tap'
import {
  BobbinError,
  type FileToStore,
  type PhysicalKey,
  type RegistryWriter,
  type Source,
} from '../../daemon/model/index.js'
import { createObjectHasher } from '../../daemon/model/object-hash.js'
import { noise } from '../support/objects.js'
import { codeOf } from './source.js'

export interface WriterPlace {
  readonly writer: RegistryWriter
  /** Reads what was written. */
  readonly source: Source
  /** Where `name` lies, a path with slashes. */
  keyOf(name: string): PhysicalKey
  /** Everything that lies in the place, half-written files too. */
  everything(): Promise<string[]>
}

/** Over 8 MiB it is two chunks, and a multipart upload where there are such. */
const LARGE_BYTES = 9 * 2 ** 20

export async function testRegistryWriter(t: Test, open: (t: Test) => Promise<WriterPlace>): Promise<void> {
  const { writer, source, keyOf, everything } = await open(t)
  const placeOf = (name: string) => ({ preferred: keyOf(name), byHash: (hex: string) => keyOf(`by-hash/${hex}`) })
  const read = async (key: PhysicalKey) => {
    const chunks: Uint8Array[] = []
    for await (const chunk of (await source.read(key)).chunks) chunks.push(chunk)
    return Buffer.concat(chunks)
  }

  for (const [what, bytes] of [
    ['small', Buffer.from('some bytes')],
    ['empty', Buffer.alloc(0)],
    ['large', noise(LARGE_BYTES)],
  ] as const) {
    t.test(`store writes a ${what} file, gives its hash, and takes it again where it lies`, async t => {
      const seen: number[] = []
      const first = await writer.store(fileOf(bytes), placeOf(`stored/${what}`), { onBytes: n => seen.push(n) })
      t.equal(first.isReused, false)
      t.strictSame(first.hash, { type: 'sha2-256-chunked', hex: await hashOf(bytes) })
      t.ok((await read(first.physicalKey)).equals(bytes))
      if (bytes.length > 0) t.equal(seen.at(-1), bytes.length)
      const again = await writer.store(fileOf(bytes), placeOf(`stored/${what}`))
      t.equal(again.isReused, true)
      t.strictSame(again.physicalKey, first.physicalKey)
      t.strictSame(again.hash, first.hash)
    })
  }

  t.test('store never writes over what an earlier revision may point to', async t => {
    const [before, after] = [Buffer.from('before'), Buffer.from('after!')]
    const old = await writer.store(fileOf(before), placeOf('twice'))
    const young = await writer.store(fileOf(after), placeOf('twice'))
    t.equal(young.isReused, false)
    t.ok((await read(old.physicalKey)).equals(before), 'the old bytes, at their old address')
    t.ok((await read(young.physicalKey)).equals(after))
    const again = await writer.store(fileOf(after), placeOf('twice'))
    t.ok((await read(again.physicalKey)).equals(after))
    t.ok((await read(old.physicalKey)).equals(before))
  })

  t.test('a name is any text', async t => {
    for (const name of ['a b', 'a+b', 'a%20b', 'é/ü', 'e\u0301', 'q"\'`$&;,:=@?#!()*[]{}|^~<>\\', '\u{1f600}']) {
      const { physicalKey } = await writer.store(fileOf(Buffer.from(name)), placeOf(`odd/${name}`))
      t.equal(String(await read(physicalKey)), name)
    }
  })

  t.test('find gives the address of what lies there, or nothing', async t => {
    await writer.put(keyOf('found/it'), fileOf(Buffer.from('x')))
    const found = await writer.find(keyOf('found/it'))
    t.equal(String(await read(found!)), 'x')
    t.equal(await writer.find(keyOf('found/none')), undefined)
    t.equal(await writer.find(keyOf('none/none')), undefined)
  })

  t.test('put writes at this very key, and remove takes away, whether it was there or not', async t => {
    for (const text of ['one', 'two']) {
      await writer.put(keyOf('put/it'), fileOf(Buffer.from(text)))
      t.equal(String(await read(keyOf('put/it'))), text)
    }
    await writer.remove(keyOf('put/it'))
    t.equal(await codeOf(read(keyOf('put/it'))), 'OBJECT_GONE')
    await writer.remove(keyOf('put/it'))
    await writer.remove(keyOf('never/there'))
  })

  t.test('replace writes only over what is expected, and of many at once one is told so', async t => {
    const key = keyOf('pointers/latest')
    t.equal(await writer.replace(key, 'b', 'a'), false, 'nothing lies there')
    t.equal(await codeOf(read(key)), 'OBJECT_GONE')
    t.equal(await writer.replace(key, 'a', undefined), true)
    t.equal(await writer.replace(key, 'b', undefined), false, 'something lies there')
    t.equal(await writer.replace(key, 'a', undefined), true, 'the text was there already')
    await writer.put(key, fileOf(Buffer.from('a\n')))
    t.equal(await writer.replace(key, 'b', 'a'), true, 'spaces around what lies there do not count')
    t.equal(String(await read(key)).trim(), 'b')
    const told = await Promise.all(['c', 'd', 'e', 'f'].map(text => writer.replace(key, text, 'b')))
    t.equal(told.filter(isFirst => isFirst).length, 1)
    t.equal(String(await read(key)).trim(), ['c', 'd', 'e', 'f'][told.indexOf(true)])
  })

  t.test('what fails or is interrupted leaves nothing behind', async t => {
    const before = await everything()
    for (const bytes of [Buffer.from('short'), noise(LARGE_BYTES)]) {
      t.equal(await codeOf(writer.store(failing(bytes), placeOf('failed'))), 'LOCAL_IO')
      t.equal(await codeOf(writer.put(keyOf('failed'), failing(bytes))), 'LOCAL_IO')
      const [controller, file] = [new AbortController(), fileOf(bytes)]
      const stops = {
        ...file,
        async *read() {
          yield bytes.subarray(0, bytes.length / 2)
          controller.abort()
          yield bytes.subarray(bytes.length / 2)
        },
      }
      t.equal(await codeOf(writer.store(stops, placeOf('failed'), { signal: controller.signal })), 'INTERRUPTED')
    }
    t.equal(await codeOf(read(keyOf('failed'))), 'OBJECT_GONE')
    t.strictSame(await everything(), before)
  })
}

function fileOf(bytes: Buffer): FileToStore {
  return {
    size: bytes.length,
    async *read() {
      for (let at = 0; at < bytes.length; at += 65_536) yield bytes.subarray(at, at + 65_536)
    },
    hash: () => hashOf(bytes),
  }
}

/** A file that is found to have changed when all of it was read. */
function failing(bytes: Buffer): FileToStore {
  const file = fileOf(bytes)
  return {
    ...file,
    async *read() {
      yield* file.read()
      throw new BobbinError(
        'LOCAL_IO',
        `it changed while it was read (${createHash('md5').update(bytes).digest('hex')})`,
      )
    },
  }
}

async function hashOf(bytes: Buffer): Promise<string> {
  const hasher = await createObjectHasher('sha2-256-chunked', bytes.length)
  hasher.update(bytes)
  return hasher.digest()
}
