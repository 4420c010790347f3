export {
  type Checkpoint,
  type CheckpointProgress,
  type CheckpointTargets,
  loadCheckpoint,
  saveCheckpoint,
} from './checkpoint.js'
export {
  decodeSafetensors,
  encodeSafetensors,
  type LoadedTensors,
  loadSafetensors,
  loadSafetensorsSync,
  type SafetensorsOptions,
  saveSafetensors,
  saveSafetensorsSync,
} from './safetensors.js'
export {
  loadTransformersMoE,
  type SaveTransformersOptions,
  saveTransformersMoE,
  type TransformersOptions,
} from './transformers.js'
