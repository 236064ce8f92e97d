import type { Brand } from './brand.js'
import { BobbinError } from './errors.js'

/** 64 lower-case hex characters; equal top hashes mean equal content for ever. */
export type TopHash = Brand<string, 'TopHash'>

const TOP_HASH = /^[0-9a-f]{64}$/

export function isTopHash(text: string): text is TopHash {
  return TOP_HASH.test(text)
}

export function parseTopHash(text: string): TopHash {
  if (!isTopHash(text)) throw new BobbinError('INVALID_ARGUMENT', `not a top hash: ${JSON.stringify(text)}`)
  return text
}
