/**
 * Dead Simple Signing Envelopes (secure-systems-lab/dsse, version 1) with Ed25519, and bundles of them
 * (`application/vnd.in-toto.bundle`): an envelope a line.
 */
import { createHash, createPrivateKey, createPublicKey, type KeyObject, sign, verify } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { BobbinError, localError } from '../../daemon/model/index.js'

export const PAYLOAD_TYPE = 'application/vnd.in-toto+json'

export interface Envelope {
  readonly payloadType: string
  /** Base64. */
  readonly payload: string
  readonly signatures: readonly { readonly keyid: string; readonly sig: string }[]
}

/** Of a PEM file. Throws INVALID_ARGUMENT. */
export function readKey(path: string, kind: 'private' | 'public'): KeyObject {
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (error) {
    throw localError(`read the key ${path}`, error)
  }
  try {
    const key = kind === 'private' ? createPrivateKey(text) : createPublicKey(text)
    if (key.asymmetricKeyType === 'ed25519') return key
  } catch {
    // Told below.
  }
  throw new BobbinError(
    'INVALID_ARGUMENT',
    `${path} is not an Ed25519 key in PEM; to make one: openssl genpkey -algorithm ed25519 -out key.pem (and openssl pkey -in key.pem -pubout)`,
  )
}

/** What records are signed with: of a file that was named, or of BOBBIN_RUN_KEY. Throws INVALID_ARGUMENT. */
export function runKey(path: string | undefined = process.env.BOBBIN_RUN_KEY): KeyObject | undefined {
  return path ? readKey(path, 'private') : undefined
}

/** SHA-256 of the public key's SPKI form. */
export function keyIdOf(key: KeyObject): string {
  const publicKey = key.type === 'private' ? createPublicKey(key) : key
  return createHash('sha256')
    .update(publicKey.export({ type: 'spki', format: 'der' }))
    .digest('hex')
}

export function signEnvelope(payload: string, key: KeyObject): Envelope {
  const body = Buffer.from(payload)
  const sig = sign(null, encodingOf(PAYLOAD_TYPE, body), key)
  return {
    payloadType: PAYLOAD_TYPE,
    payload: body.toString('base64'),
    signatures: [{ keyid: keyIdOf(key), sig: sig.toString('base64') }],
  }
}

/** The payload, when this key has signed it. */
export function openEnvelope({ payloadType, payload, signatures }: Envelope, key: KeyObject): string | undefined {
  const body = Buffer.from(payload, 'base64')
  const isSigned = signatures.some(({ sig }) =>
    verify(null, encodingOf(payloadType, body), key, Buffer.from(sig, 'base64')),
  )
  return isSigned && payloadType === PAYLOAD_TYPE ? body.toString('utf8') : undefined
}

/** The pre-authentication encoding: what is signed. */
function encodingOf(type: string, body: Buffer): Buffer {
  return Buffer.concat([Buffer.from(`DSSEv1 ${Buffer.byteLength(type)} ${type} ${body.length} `), body])
}
