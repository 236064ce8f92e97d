/** Verified paths, a line a step (protocol.md, Batches). Lines are put together as text: they are made for each batch. */
import { createHash } from 'node:crypto'

/** What of a sample is the same in every epoch, as the text of the object's members `files` and `meta`. */
export function sampleBody(files: readonly (readonly [suffix: string, text: string])[], meta: string | null): string {
  const members = files.map(([suffix, text]) => `${JSON.stringify(suffix)}:${text}`).join(',')
  return `"files":{${members}}${meta === null ? '' : `,"meta":${meta}`}`
}

export function sampleText(pos: number, isPad: boolean, body: string): string {
  return `{"pos":${pos},"pad":${isPad},${body}}`
}

export interface StepLine {
  readonly epoch: number
  readonly step: number | null
  readonly cursor: string | null
  readonly lease: string
  readonly samples: readonly string[]
}

/** Its last member is the SHA-256 of the text before that, so that no reader takes paths and metadata on trust. */
export function stepLine({ epoch, step, cursor, lease, samples }: StepLine): string {
  const text = `{"epoch":${epoch},"step":${step},"cursor":${JSON.stringify(cursor)},"lease":"${lease}","samples":[${samples.join(',')}]`
  return `${text},"sha256":"${createHash('sha256').update(text).digest('hex')}"}\n`
}

export function endLine(cursor: string | null): string {
  return `${JSON.stringify({ end: true, cursor })}\n`
}
