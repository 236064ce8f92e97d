/** By which path a daemon is started: the links of an installation stay in it, so that a later start follows where they lead then. */
import { mkdirSync, realpathSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { installedPath } from '../../../../daemon/control/bobbin-fuse.js'
import { testFolder } from '../../../support/daemon.js'

t.test('installedPath keeps the links of folders, and follows those of files (S134)', async t => {
  const folder = testFolder(t)
  const version = join(folder, 'lib/v1')
  for (const room of ['cli', 'daemon']) {
    mkdirSync(join(version, 'dist', room), { recursive: true })
    writeFileSync(join(version, 'dist', room, 'main.js'), '')
  }
  symlinkSync('v1', join(folder, 'lib/current'))
  mkdirSync(join(folder, 'bin'))
  symlinkSync('../lib/current/dist/cli/main.js', join(folder, 'bin/bobbin'))
  symlinkSync('bobbin', join(folder, 'bin/other'))
  const file = join(version, 'dist/daemon/main.js')
  const kept = join(folder, 'lib/current/dist/daemon/main.js')
  t.equal(realpathSync(kept), file)
  t.equal(installedPath(file, join(folder, 'bin/bobbin')), kept)
  t.equal(installedPath(file, join(folder, 'bin/other')), kept)
  t.equal(installedPath(file, join(folder, 'lib/current/dist/cli/main.js')), kept)
  t.equal(installedPath(file, join(version, 'dist/cli/main.js')), file)
  t.equal(installedPath(file, join(folder, 'bin')), file, 'started from somewhere else')
  t.equal(installedPath(file, join(folder, 'gone')), file)
})
