export { type Checkpoint, type CheckpointTargets, loadCheckpoint, saveCheckpoint } from './checkpoint.js'
export {
  type LoadedTensors,
  loadSafetensors,
  loadSafetensorsSync,
  saveSafetensors,
  saveSafetensorsSync,
} from './safetensors.js'
