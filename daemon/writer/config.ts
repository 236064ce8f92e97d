/** What a registry writer is made with. */
import type { SourceConfig } from '../source/index.js'

export interface WriterConfig extends SourceConfig {
  /** Where is noted what a killed process would leave behind in a bucket. */
  readonly cacheDir: string
  /** What the server turned out to lack, in words, once per lack (abilities.ts). */
  readonly onLack?: ((what: string) => void) | undefined
}
