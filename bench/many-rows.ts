import { createHash } from 'node:crypto'
import { closeSync, openSync, writeSync } from 'node:fs'

/** A manifest of many rows, like those of an image collection: two levels, a version each, metadata on every other one. */
export function writeManyRows(path: string, rows: number): { path: string; topHash: string } {
  const fd = openSync(path, 'w')
  const hash = createHash('sha256').update('{"message":"many rows","version":"v0"}')
  writeSync(fd, '{"version": "v0", "message": "many rows"}\n')
  let text = ''
  let canonical = ''
  for (let i = 0; i < rows; i++) {
    const key = `train/n${String(Math.floor(i / 1000)).padStart(8, '0')}/image_${String(i).padStart(8, '0')}.jpg`
    const value = createHash('sha256').update(String(i)).digest('base64')
    const version = createHash('md5').update(key).digest('hex')
    const size = 100_000 + (i % 20_000)
    const label = i % 1000
    const meta = i % 2 ? '{}' : `{"user_meta": {"label": ${label}, "split": "train"}}`
    text += `{"logical_key": "${key}", "physical_keys": ["s3://example-bucket/cv/big/${key}?versionId=${version}"], "size": ${size}, "hash": {"type": "sha2-256-chunked", "value": "${value}"}, "meta": ${meta}}\n`
    canonical += `{"hash":{"type":"sha2-256-chunked","value":"${value}"},"logical_key":"${key}","meta":${i % 2 ? '{}' : `{"user_meta":{"label":${label},"split":"train"}}`},"size":${size}}`
    if (text.length < 2 ** 20 && i < rows - 1) continue
    writeSync(fd, text)
    hash.update(canonical)
    text = ''
    canonical = ''
  }
  closeSync(fd)
  return { path, topHash: hash.digest('hex') }
}
