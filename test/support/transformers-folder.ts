import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { saveSafetensorsSync, tensor } from '../../lib/index.js'
import type { Model } from './transformers-reference.js'

/** Writes config.json, and one file with the tensors of all of these models, to a folder that it creates. */
export function writeModels(path: string, models: readonly Pick<Model, 'config' | 'tensors'>[]): string {
  mkdirSync(path, { recursive: true })
  writeFileSync(join(path, 'config.json'), JSON.stringify(models[0].config))
  const tensors = Object.assign({}, ...models.map((model) => model.tensors)) as Model['tensors']
  const state = Object.entries(tensors).map(([name, { shape, data }]) => [name, tensor(Float32Array.from(data), shape)])
  saveSafetensorsSync(join(path, 'model.safetensors'), Object.fromEntries(state))
  return path
}
