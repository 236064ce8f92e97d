/** How the two forms of an answer become samples (loader/protocol.md, Batches and Tar). Nothing is taken on trust. */
import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pipeline, type Readable } from 'node:stream'
import { extract } from 'tar-stream'
import { HASH_TYPES, type HashType } from '../../daemon/model/index.js'
import { createObjectHasher } from '../../daemon/model/object-hash.js'
import { bytesOf } from './connection.js'
import { Cut, damaged, LoaderError } from './errors.js'

export interface FileProblem {
  readonly code: string
  readonly detail: string
}

/** One sample: its files by their suffixes. */
export interface Sample {
  /** In its epoch, from 0. */
  readonly position: number
  /** It repeats an earlier one, to fill the last step: leave it out of the loss. */
  readonly isPad: boolean
  /** Suffix to content. */
  readonly files: ReadonlyMap<string, Buffer>
  /** Suffix to logical key in the package. */
  readonly keys: ReadonlyMap<string, string>
  /** Suffix to the entry's metadata, or null; empty when the plan has `meta: null`. */
  readonly meta: Readonly<Record<string, unknown>>
  /** With `onMissing: 'mark'`: suffix to what is the matter with a file that cannot be had. */
  readonly errors: ReadonlyMap<string, FileProblem>
}

/** A rank's part of one step. */
export interface Batch {
  readonly samples: readonly Sample[]
  readonly epoch: number
  readonly step: number
  /** Where to go on behind this step: what to put into a checkpoint. */
  readonly cursor: string
}

interface FileRow {
  readonly key: string
  /** Bytes. */
  readonly size: number
  /** `type:hex` */
  readonly hash: string
}

/** Of an answer as paths. */
export interface PathsLine {
  readonly epoch: number
  readonly step: number | null
  readonly cursor: string | null
  readonly lease: string
  readonly samples: readonly {
    readonly pos: number
    readonly pad: boolean
    readonly files: Readonly<Record<string, FileRow & { readonly path?: string; readonly error?: FileProblem }>>
    readonly meta?: Readonly<Record<string, unknown>>
  }[]
}

/** How a line ends: with the SHA-256 of what is before that. */
const LINE_CHECK = /,"sha256":"([0-9a-f]{64})"\}$/

/** A line a step. Throws ANSWER_DAMAGED, and Cut unless the last line says that it is the last. */
export async function linesOf(response: Readable): Promise<PathsLine[]> {
  const lines = (await bytesOf(response)).toString('utf8').split('\n')
  if (lines.pop() !== '' || !lines.at(-1)?.includes('"end"')) throw new Cut('the answer was cut')
  return lines.slice(0, -1).map(line => {
    const check = LINE_CHECK.exec(line)
    if (check === null || sha256(line.slice(0, check.index)) !== check[1])
      throw damaged('a line of paths and metadata is not what was sent')
    return JSON.parse(line) as PathsLine
  })
}

/** Reads a line's files below the folder of objects. Throws what reading throws, ANSWER_DAMAGED. */
export function samplesOfLine({ samples }: PathsLine, objects: string, verify: boolean): Promise<Sample[]> {
  return Promise.all(
    samples.map(async ({ pos, pad, files: rows, meta = {} }) => {
      const [files, keys, errors] = [
        new Map<string, Buffer>(),
        new Map<string, string>(),
        new Map<string, FileProblem>(),
      ]
      const read = async (suffix: string, row: (typeof rows)[string]) => {
        keys.set(suffix, row.key)
        if (row.error !== undefined) return void errors.set(suffix, row.error)
        const path = row.path ?? ''
        if (path === '' || path.startsWith('/') || path.split('/').includes('..'))
          throw damaged(`${JSON.stringify(path)} is not a path below the folder of objects`)
        const content = await readFile(join(objects, path))
        await check(content, row, verify)
        files.set(suffix, content)
      }
      await Promise.all(Object.entries(rows).map(([suffix, row]) => read(suffix, row)))
      return { position: pos, isPad: pad, files, keys, meta, errors }
    }),
  )
}

export interface TarIndex {
  readonly plan: string
  readonly topHash: string
  readonly epoch: number
  readonly steps: readonly number[]
  readonly samples: readonly {
    readonly pos: number
    readonly pad: boolean
    readonly step: number | null
    readonly files: Readonly<Record<string, FileRow>>
    /** Of the metadata member, where the plan has one. */
    readonly metaSha256?: string
  }[]
}

interface Member {
  readonly name: string
  readonly content: Buffer
}

const INDEX_NAME = '__bobbin__/index.json'
const END_NAME = '__bobbin__/end.json'

/**
 * The samples of a tar as they come, each with its step; `onIndex` is told first what the answer says that it is. Who
 * reads to the end has seen the end member. Throws Cut, ANSWER_DAMAGED.
 */
export async function* samplesOfTar(
  response: Readable,
  options: { readonly meta: string | null; readonly verify: boolean; onIndex(index: TarIndex): void },
): AsyncGenerator<{ readonly step: number | null; readonly sample: Sample }> {
  const members = membersOf(response)
  try {
    const first = await nextMember(members, INDEX_NAME)
    const index = documentOf(first) as TarIndex & { readonly schema: string }
    if (index.schema !== 'bobbin-index-1') throw damaged(`the index is ${index.schema}, not bobbin-index-1`)
    options.onIndex(index)
    let count = 1
    for (const row of index.samples) {
      const { sample, read } = await sampleOfTar(members, row, options)
      count += read
      yield { step: row.step, sample }
    }
    const end = documentOf(await nextMember(members, END_NAME)) as Record<string, unknown>
    const isOfIndex = end.indexSha256 === sha256(first.content)
    if (end.members !== count || end.samples !== index.samples.length || !isOfIndex)
      throw damaged('the end member does not fit what came before it')
    if (!(await members.next()).done) throw damaged('there is a member behind the end member')
  } finally {
    response.destroy()
  }
}

async function sampleOfTar(
  members: AsyncGenerator<Member>,
  { pos, pad, files: rows, metaSha256 }: TarIndex['samples'][number],
  { meta: metaSuffix, verify }: { readonly meta: string | null; readonly verify: boolean },
): Promise<{ readonly sample: Sample; readonly read: number }> {
  const base = `${String(pos).padStart(8, '0')}.`
  const [files, keys, errors] = [new Map<string, Buffer>(), new Map<string, string>(), new Map<string, FileProblem>()]
  let meta: Sample['meta'] = {}
  let read = 0
  const expected = new Set(Object.keys(rows))
  if (metaSuffix !== null) expected.add(metaSuffix)
  while (expected.size > 0) {
    const member = await nextMember(members, base)
    read++
    const name = member.name.slice(base.length)
    const suffix = expected.has(name) ? name : name.replace(/\.error\.json$/, '')
    if (!expected.delete(suffix)) throw damaged(`${member.name} should not come here`)
    if (suffix === metaSuffix) {
      if (sha256(member.content) !== metaSha256)
        throw damaged(`${member.name}: the metadata is not what the index says`)
      meta = documentOf(member) as Sample['meta']
      continue
    }
    const row = rows[suffix]!
    keys.set(suffix, row.key)
    if (suffix === name) {
      await check(member.content, row, verify)
      files.set(suffix, member.content)
    } else {
      errors.set(suffix, documentOf(member) as FileProblem)
    }
  }
  if (pad) {
    await nextMember(members, `${base}pad`)
    read++
  }
  return { sample: { position: pos, isPad: pad, files, keys, meta, errors }, read }
}

async function* membersOf(response: Readable): AsyncGenerator<Member> {
  const entries = extract()
  // What goes wrong is thrown where the entries are read.
  pipeline(response, entries, () => {})
  try {
    for await (const entry of entries) {
      const chunks: Buffer[] = []
      for await (const chunk of entry) chunks.push(chunk as Buffer)
      yield { name: entry.header.name, content: chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks) }
    }
  } catch (error) {
    throw new Cut('the answer was cut, or is not a tar', { cause: error })
  }
}

async function nextMember(members: AsyncGenerator<Member>, start: string): Promise<Member> {
  const { value, done } = await members.next()
  if (done) throw new Cut(`the answer was cut before ${start}`)
  if (!value.name.startsWith(start)) throw damaged(`${start} should come now, not ${value.name}`)
  return value
}

function documentOf({ name, content }: Member): unknown {
  try {
    return JSON.parse(content.toString('utf8'))
  } catch (error) {
    throw new LoaderError('ANSWER_DAMAGED', `${name} is not what it should be`, { cause: error })
  }
}

function sha256(data: string | Buffer): string {
  return createHash('sha256').update(data).digest('hex')
}

function isHashType(type: string | undefined): type is HashType {
  return HASH_TYPES.some(known => known === type)
}

async function check(content: Buffer, { key, size, hash }: FileRow, verify: boolean): Promise<void> {
  if (content.length !== size) throw damaged(`${key} has ${content.length} bytes here, the package says ${size}`)
  if (!verify) return
  const [type, hex] = hash.split(':')
  if (!isHashType(type)) throw damaged(`${hash} is not a hash that a package has`)
  const hasher = await createObjectHasher(type, size)
  hasher.update(content)
  if (hasher.digest() !== hex) throw damaged(`the bytes of ${key} do not hash to ${hash}`)
}
