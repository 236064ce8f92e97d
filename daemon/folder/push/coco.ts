/**
 * A file of COCO's annotations as metadata of images. An image's metadata is
 *
 *   {"annotations": [{…annotation, "category": NAME, "supercategory": NAME}, …]}
 *
 * with its annotations in the order of the file, and the names of their category beside them, so that an expression can
 * ask for an animal without a second table. An image without annotations has an empty list. The image is the entry whose
 * key is, or ends with, its `file_name`.
 *
 * The file is in memory as it is (COCO's largest has 470 MB), and is scanned, not parsed: 1.0 stays 1.0.
 */
import { readFile } from 'node:fs/promises'
import { canonicalJson } from '../../json/canonical-json.js'
import { decodeString, findMember, JsonScanner, JsonSyntaxError, type Span } from '../../json/json-bytes.js'
import { withMembers } from '../../json/json-members.js'
import { parseUserMeta } from '../../manifest/manifest-writer.js'
import { BobbinError, localError } from '../../model/index.js'

interface Image {
  readonly id: string
  key: string | undefined
}

export class CocoFile {
  readonly #images = new Map<string, Image>()
  /** By the image's id: pairs of [from, to). */
  readonly #annotations = new Map<string, number[]>()
  readonly #categories = new Map<string, { readonly category?: string; readonly supercategory?: string }>()

  private constructor(
    private readonly path: string,
    private readonly bytes: Buffer,
  ) {}

  static async open(path: string): Promise<CocoFile> {
    const bytes = await readFile(path).catch(error => Promise.reject(localError(`read the metadata in ${path}`, error)))
    const file = new CocoFile(path, bytes)
    try {
      file.#scan()
    } catch (error) {
      if (error instanceof JsonSyntaxError) throw file.#refused(`not JSON at byte ${error.at}: ${error.message}`)
      throw error
    }
    return file
  }

  #scan(): void {
    for (const span of this.#list('categories')) {
      const [category, supercategory] = ['name', 'supercategory'].map(name => this.#text(span, name))
      this.#categories.set(this.#id(span, 'id'), {
        ...(category !== undefined && { category }),
        ...(supercategory !== undefined && { supercategory }),
      })
    }
    for (const span of this.#list('images')) {
      const name = findMember(this.bytes, span.from, span.to, 'file_name')
      if (name === undefined || this.bytes[name.from] !== 0x22) throw this.#refused('an image has no file_name')
      const fileName = decodeString(this.bytes, name.from + 1, name.to - 1)
      if (this.#images.has(fileName)) throw this.#refused(`two images are ${JSON.stringify(fileName)}`)
      this.#images.set(fileName, { id: this.#id(span, 'id'), key: undefined })
    }
    const ids = new Set([...this.#images.values()].map(({ id }) => id))
    for (const span of this.#list('annotations')) {
      const image = this.#id(span, 'image_id')
      if (!ids.has(image)) throw this.#refused(`an annotation is of image ${image}, which is not in its images`)
      const spans = this.#annotations.get(image)
      if (spans === undefined) this.#annotations.set(image, [span.from, span.to])
      else spans.push(span.from, span.to)
    }
  }

  *#list(name: string): Generator<Span> {
    const list = findMember(this.bytes, 0, this.bytes.length, name)
    if (list === undefined || this.bytes[list.from] !== 0x5b) {
      throw this.#refused(`no list "${name}": it is not COCO's annotations (JSON lines end in .jsonl)`)
    }
    const scanner = new JsonScanner()
    scanner.start(this.bytes, list.from + 1, list.to)
    if (scanner.peek() === 0x5d) return
    do {
      scanner.skipSpace()
      const from = scanner.at
      scanner.skipValue()
      if (this.bytes[from] !== 0x7b) throw this.#refused(`"${name}" has something that is not an object`)
      yield { from, to: scanner.at }
    } while (!scanner.isLast(0x5d))
  }

  #id({ from, to }: Span, name: string): string {
    const span = findMember(this.bytes, from, to, name)
    if (span !== undefined) return canonicalJson(this.bytes, span.from, span.to)
    throw this.#refused(`an object has no ${name}: ${this.bytes.toString('utf8', from, Math.min(to, from + 80))}`)
  }

  #text({ from, to }: Span, name: string): string | undefined {
    const span = findMember(this.bytes, from, to, name)
    return span && this.bytes.toString('utf8', span.from, span.to)
  }

  /** The metadata of an entry, if it is one of the images. Throws INVALID_ARGUMENT when two entries are the same image. */
  metaOf(key: string, under: string): string | undefined {
    const image = this.#imageOf(key, under)
    if (image === undefined) return undefined
    if (image.key !== undefined) {
      const both = `${JSON.stringify(image.key)} and ${JSON.stringify(key)}`
      throw this.#refused(`${both} both end with the file_name of one image: name its folder with --meta-under`)
    }
    image.key = key
    const spans = this.#annotations.get(image.id) ?? []
    const annotations: string[] = []
    for (let i = 0; i < spans.length; i += 2) annotations.push(this.#annotation(spans[i]!, spans[i + 1]!))
    return parseUserMeta(`{"annotations":[${annotations.join(',')}]}`)
  }

  /** The longest end of the key that is a file_name. */
  #imageOf(key: string, under: string): Image | undefined {
    if (under !== '') return key.startsWith(`${under}/`) ? this.#images.get(key.slice(under.length + 1)) : undefined
    for (let at = 0; ; ) {
      const found = this.#images.get(key.slice(at))
      if (found !== undefined) return found
      at = key.indexOf('/', at) + 1
      if (at === 0) return undefined
    }
  }

  #annotation(from: number, to: number): string {
    const bytes = this.bytes.subarray(from, to)
    const category = findMember(bytes, 0, bytes.length, 'category_id')
    const names = category && this.#categories.get(canonicalJson(bytes, category.from, category.to))
    return (names === undefined ? bytes : withMembers(bytes, names)).toString()
  }

  /** File names of images that no entry was. */
  *unmatched(): Generator<string> {
    for (const [fileName, { key }] of this.#images) if (key === undefined) yield fileName
  }

  #refused(reason: string): BobbinError {
    return new BobbinError('INVALID_ARGUMENT', `${this.path}: ${reason}`)
  }
}
