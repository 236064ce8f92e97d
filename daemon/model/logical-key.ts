/**
 * Paths inside a package. Bytes are never folded: names that differ only by case or by Unicode
 * normalisation are different names.
 */
import { isUtf8 } from 'node:buffer'
import type { Brand } from './brand.js'

/** A `/`-separated path that may appear in a filesystem: every component is a safe file name. */
export type LogicalKey = Brand<string, 'LogicalKey'>

/** NAME_MAX of Linux filesystems, in bytes. */
export const COMPONENT_BYTES_MAX = 255
/** PATH_MAX less its final NUL: a longer key could be listed, but not opened by its path. */
export const KEY_BYTES_MAX = 4095
/**
 * How deep a key may lie. Windows' paths end at 130 components, and programs that walk folders recursively end before
 * 1,000; only a manifest that was made to be large (`a/a/a/…`) has more.
 */
export const COMPONENTS_MAX = 255

/**
 * Why a key cannot be shown in a filesystem, or `undefined` when it can.
 *
 * quilt3 checks keys when it writes them and not when it reads them, so a manifest may hold any
 * string; what is refused here would escape the mountpoint or could not be looked up.
 */
export function keyProblem(key: string): string | undefined {
  if (key === '') return 'the key is empty'
  if (key.includes('\0')) return 'the key has a NUL character'
  // Every UTF-16 unit takes at most 3 bytes, so short keys need no counting.
  if (key.length * 3 > KEY_BYTES_MAX && Buffer.byteLength(key) > KEY_BYTES_MAX) {
    return `the key is over ${KEY_BYTES_MAX} bytes`
  }
  const components = key.split('/')
  if (components.length > COMPONENTS_MAX) return `the key has over ${COMPONENTS_MAX} components`
  for (const component of components) {
    if (component === '') return 'the key has an empty component'
    if (component === '.' || component === '..') return `the key has a ${JSON.stringify(component)} component`
    if (component.length * 3 > COMPONENT_BYTES_MAX && Buffer.byteLength(component) > COMPONENT_BYTES_MAX) {
      return `a component is over ${COMPONENT_BYTES_MAX} bytes`
    }
  }
  if (!key.isWellFormed()) return 'the key is not valid Unicode (a lone surrogate)'
  return undefined
}

/**
 * A key as bytes whose order is that of code points: UTF-8, where a lone surrogate, which UTF-8 does not have, takes the
 * three bytes that it would have. No such key is ever shown, but it has its place in the order that the top hash covers.
 */
export function keyBytes(key: string): Buffer {
  if (key.isWellFormed()) return Buffer.from(key)
  const pieces = Array.from(key, character => {
    const code = character.codePointAt(0)!
    const isLone = code >= 0xd800 && code <= 0xdfff
    return isLone
      ? Buffer.of(0xe0 | (code >> 12), 0x80 | ((code >> 6) & 0x3f), 0x80 | (code & 0x3f))
      : Buffer.from(character)
  })
  return Buffer.concat(pieces)
}

/** The key that `keyBytes` made these bytes of. */
export function keyText(bytes: Buffer): string {
  if (isUtf8(bytes)) return bytes.toString('utf8')
  let key = ''
  let from = 0
  for (let i = 0; i < bytes.length; i++) {
    if (bytes[i] !== 0xed || bytes[i + 1]! < 0xa0) continue
    key += bytes.toString('utf8', from, i)
    key += String.fromCharCode(0xd000 | ((bytes[i + 1]! & 0x3f) << 6) | (bytes[i + 2]! & 0x3f))
    from = i + 3
    i += 2
  }
  return key + bytes.toString('utf8', from)
}

/**
 * Tree order: components compared one by one, by Unicode code point (equal to the byte order of
 * UTF-8). `a/b` sorts before `a-b`, unlike in plain string order. Both arguments are as `keyBytes` makes them.
 */
export function compareTreeOrder(a: Uint8Array, b: Uint8Array): number {
  const length = Math.min(a.length, b.length)
  for (let i = 0; i < length; i++) {
    const x = a[i]!
    const y = b[i]!
    if (x !== y) return compareTreeBytes(x, y)
  }
  return a.length - b.length
}

/** The order of two keys that differ first in these bytes. */
export function compareTreeBytes(x: number, y: number): number {
  // The component that ends first is a prefix of the other one, so it comes first.
  if (x === 0x2f) return -1
  if (y === 0x2f) return 1
  return x - y
}
