/** What runs in a thread of its own: the walk over a package that makes a plan's sample table. */
import { type ErrorCode, localError } from '../../daemon/model/index.js'
import { PackageIndex } from '../../daemon/quilt/package-index.js'
import type { PlanDocument } from '../plan/plan-document.js'
import { buildSampleTable, type TableFacts } from '../plan/sample-table.js'

export interface TableTask {
  readonly indexPath: string
  readonly manifestPath: string
  readonly document: PlanDocument
  /** Where the table goes. */
  readonly path: string
}

// A default export is what piscina asks for.
export default async function build(task: TableTask): Promise<TableFacts | { code: ErrorCode; message: string }> {
  try {
    const index = new PackageIndex(task.indexPath, task.manifestPath)
    try {
      return await buildSampleTable(index, task.document, task.path)
    } finally {
      index.close()
    }
  } catch (error) {
    // An error's class does not survive the way to another thread.
    const { code, message } = localError('make a plan', error)
    return { code, message }
  }
}
