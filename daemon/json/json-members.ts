/**
 * A JSON object with some members changed, made from its text: what is not changed keeps its bytes, so that number
 * tokens and unknown members of a manifest stay what they are.
 */
import { decodeString, JsonScanner } from './json-bytes.js'

/** JSON text by the member's name; `undefined` takes the member away. */
export type MemberChanges = Readonly<Record<string, string | undefined>>

/** `bytes` are one JSON object. Throws JsonSyntaxError. */
export function withMembers(bytes: Buffer, changes: MemberChanges): Buffer {
  const kept: Buffer[] = []
  const add = (piece: Buffer) => kept.push(kept.length === 0 ? OPENING : COMMA, piece)
  const scanner = new JsonScanner()
  scanner.start(bytes, 0, bytes.length)
  scanner.expect(0x7b, 'an object')
  if (scanner.peek() === 0x7d) scanner.at++
  else {
    do {
      scanner.skipSpace()
      const from = scanner.at
      scanner.skipString()
      const name = decodeString(bytes, from + 1, scanner.at - 1)
      scanner.expect(0x3a, '":"')
      scanner.skipValue()
      if (!Object.hasOwn(changes, name)) add(bytes.subarray(from, scanner.at))
    } while (!scanner.isLast(0x7d))
  }
  scanner.expectEnd()
  for (const [name, value] of Object.entries(changes)) {
    if (value !== undefined) add(Buffer.from(`${JSON.stringify(name)}:${value}`))
  }
  return Buffer.concat(kept.length === 0 ? [OPENING, CLOSING] : [...kept, CLOSING])
}

const OPENING = Buffer.from('{')
const COMMA = Buffer.from(',')
const CLOSING = Buffer.from('}')
