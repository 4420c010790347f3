export {
  type Checkpoint,
  type CheckpointProgress,
  type CheckpointTargets,
  checkpointHeaderSync,
  checkpointProgress,
  type LoadedProgress,
  loadCheckpoint,
  type SaveCheckpointOptions,
  saveCheckpoint,
} from './checkpoint.js'
export type { FileContent } from './plain-files.js'
export {
  decodeSafetensors,
  encodeSafetensors,
  type LoadedTensors,
  type LoadSafetensorsOptions,
  loadSafetensors,
  loadSafetensorsSync,
  readSafetensorsHeaderSync,
  type SafetensorsHeader,
  type SafetensorsOptions,
  saveSafetensors,
  saveSafetensorsSync,
  type TensorInfo,
} from './safetensors.js'
export {
  loadTransformersMoE,
  type SaveTransformersOptions,
  saveTransformersMoE,
  type TransformersOptions,
} from './transformers.js'
