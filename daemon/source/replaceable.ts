/** A source that others keep while what is behind it changes: after a reload it asks with other credentials, or elsewhere. */
import type { Source } from '../model/index.js'
import { createSource, type SourceConfig } from './index.js'

export class ReplaceableSource implements Source {
  #present: ReturnType<typeof createSource>

  constructor(config: SourceConfig) {
    this.#present = createSource(config)
  }

  read(...args: Parameters<Source['read']>): ReturnType<Source['read']> {
    return this.#present.read(...args)
  }

  list(...args: Parameters<Source['list']>): ReturnType<Source['list']> {
    return this.#present.list(...args)
  }

  /** Readings under way break, and are continued with what they began with. */
  replace(config: SourceConfig): void {
    this.#present.close()
    this.#present = createSource(config)
  }

  close(): void {
    this.#present.close()
  }
}
