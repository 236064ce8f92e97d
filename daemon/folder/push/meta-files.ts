/**
 * Files that people have metadata of entries in, by how their names end:
 *
 *   .jsonl, .ndjson   {"key": KEY, …metadata} per line
 *   .csv, .tsv        a column `key` (or `logical_key`); every other column is a member, and its cells are text. A column
 *                     that is named `NAME:json` has JSON in its cells. An empty cell is left out
 *   .json             COCO's annotations (coco.ts)
 *
 * Throws INVALID_ARGUMENT with file and line. Numbers stay as they are written.
 */
import { createReadStream } from 'node:fs'
import { stat } from 'node:fs/promises'
import { extname } from 'node:path'
import { createInterface } from 'node:readline'
import { parse } from 'csv-parse'
import { decodeString, findMember } from '../../json/json-bytes.js'
import { withMembers } from '../../json/json-members.js'
import { parseUserMeta } from '../../manifest/manifest-writer.js'
import { BobbinError, localError, systemCode, throwIfAborted } from '../../model/index.js'

const KEY_NAMES = ['key', 'logical_key']
const JSON_COLUMN = ':json'
/** As long as a row of a manifest may be, and what it takes to write that with escapes. */
const RECORD_BYTES_MAX = 8 * 2 ** 20

export interface KeyedMeta {
  readonly key: string
  /** Canonical JSON text of an object. */
  readonly text: string
}

export type MetaFormat = 'lines' | 'csv' | 'tsv' | 'coco'

const FORMATS: Readonly<Record<string, MetaFormat>> = {
  '.jsonl': 'lines',
  '.ndjson': 'lines',
  '.csv': 'csv',
  '.tsv': 'tsv',
  '.json': 'coco',
}

export async function metaFormat(path: string): Promise<MetaFormat> {
  const stats = await stat(path).catch(error => Promise.reject(localError(`read the metadata in ${path}`, error)))
  if (!stats.isFile()) throw new BobbinError('INVALID_ARGUMENT', `${path} is not a file`)
  const format = FORMATS[extname(path).toLowerCase()]
  if (format !== undefined) return format
  const known = Object.keys(FORMATS).join(', ')
  throw new BobbinError(
    'INVALID_ARGUMENT',
    `the format of ${path} follows from its ending, which is not one of ${known}`,
  )
}

export async function* readMetaLines(path: string, signal?: AbortSignal): AsyncGenerator<KeyedMeta> {
  const input = createReadStream(path)
  let number = 0
  try {
    for await (const line of createInterface({ input, crlfDelay: Number.POSITIVE_INFINITY })) {
      throwIfAborted(signal)
      number++
      const text = number === 1 ? line.replace(/^\ufeff/, '') : line
      if (text.trim() === '') continue
      yield at(`${path}, line ${number}`, () => ofLine(text))
    }
  } catch (error) {
    throw localError(`read the metadata in ${path}`, error)
  } finally {
    input.destroy()
  }
}

function ofLine(text: string): KeyedMeta {
  const bytes = Buffer.from(parseUserMeta(text))
  const span = findMember(bytes, 0, bytes.length, 'key')
  if (span === undefined || bytes[span.from] !== 0x22) throw new BobbinError('INVALID_ARGUMENT', 'no text member "key"')
  return {
    key: decodeString(bytes, span.from + 1, span.to - 1),
    text: withMembers(bytes, { key: undefined }).toString(),
  }
}

export async function* readMetaTable(path: string, delimiter: string, signal?: AbortSignal): AsyncGenerator<KeyedMeta> {
  const input = createReadStream(path)
  const parser = parse({ delimiter, bom: true, info: true, skip_empty_lines: true, max_record_size: RECORD_BYTES_MAX })
  input.on('error', error => parser.destroy(error))
  let columns: readonly string[] | undefined
  let keyColumn = -1
  try {
    for await (const { record, info } of input.pipe(parser) as AsyncIterable<Parsed>) {
      throwIfAborted(signal)
      if (columns === undefined) {
        columns = record
        keyColumn = keyColumnOf(path, columns)
        continue
      }
      const names = columns
      yield at(`${path}, line ${info.lines}`, () => ofRecord(names, keyColumn, record))
    }
  } catch (error) {
    if (error instanceof BobbinError || systemCode(error) === undefined) throw error
    if (systemCode(error)?.startsWith('CSV_')) {
      throw new BobbinError('INVALID_ARGUMENT', `${path} is not CSV: ${(error as Error).message}`, { cause: error })
    }
    throw localError(`read the metadata in ${path}`, error)
  } finally {
    input.destroy()
    parser.destroy()
  }
}

interface Parsed {
  readonly record: readonly string[]
  readonly info: { readonly lines: number }
}

function keyColumnOf(path: string, columns: readonly string[]): number {
  const found = columns.findIndex(name => KEY_NAMES.includes(name))
  const named = columns.map(name => JSON.stringify(name)).join(', ')
  if (found < 0) {
    throw new BobbinError(
      'INVALID_ARGUMENT',
      `${path} has no column "key" or "logical_key" in its first line: ${named}`,
    )
  }
  const plain = columns.map(name => (name.endsWith(JSON_COLUMN) ? name.slice(0, -JSON_COLUMN.length) : name))
  if (new Set(plain).size === columns.length) return found
  throw new BobbinError('INVALID_ARGUMENT', `${path} has a column twice: ${named}`)
}

function ofRecord(columns: readonly string[], keyColumn: number, record: readonly string[]): KeyedMeta {
  const members: string[] = []
  for (const [i, name] of columns.entries()) {
    const cell = record[i] ?? ''
    if (i === keyColumn || cell === '') continue
    if (!name.endsWith(JSON_COLUMN)) members.push(`${JSON.stringify(name)}:${JSON.stringify(cell)}`)
    else members.push(`${JSON.stringify(name.slice(0, -JSON_COLUMN.length))}:${cell}`)
  }
  return { key: record[keyColumn]!, text: parseUserMeta(`{${members.join(',')}}`) }
}

function at<T>(place: string, read: () => T): T {
  try {
    return read()
  } catch (error) {
    if (!(error instanceof BobbinError)) throw error
    throw new BobbinError(error.code, `${place}: ${error.message}`, { cause: error })
  }
}
