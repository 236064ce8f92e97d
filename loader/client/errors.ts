/**
 * What the sidecar refused (`code` is one of daemon/model/errors.ts), or found out here: `SIDECAR_UNREACHABLE`,
 * `ANSWER_DAMAGED`, `INVALID_ARGUMENT`.
 */
export class LoaderError extends Error {
  override readonly name = 'LoaderError'
  readonly code: string
  /** Of the answer, where there was one. */
  readonly status: number | undefined
  /** Asking again after so many milliseconds may help. */
  readonly retryAfterMs: number | undefined

  constructor(
    code: string,
    message: string,
    { status, retryAfterMs, cause }: { status?: number; retryAfterMs?: number; cause?: unknown } = {},
  ) {
    super(message, { cause })
    this.code = code
    this.status = status
    this.retryAfterMs = retryAfterMs
  }
}

/** No answer, or one that ended too early: asked again. */
export class Cut extends Error {
  override readonly name = 'Cut'
}

export function damaged(message: string): LoaderError {
  return new LoaderError('ANSWER_DAMAGED', message)
}
