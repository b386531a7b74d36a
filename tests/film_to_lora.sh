# From a film with cuts to a LoRA and a clip of it: every command as a person would type it.
ltx-nb scenes $FILM clips --detector content --resolution-buckets "64x64x25;64x64x17" --dry-run
ltx-nb scenes $FILM clips --detector content --resolution-buckets "64x64x25;64x64x17"
ltx-nb caption clips --url $SERVER --num-workers 2
ltx-nb caption-doctor clips
ltx-nb prepare clips -o data --model tiny --resolution-buckets 64x64x17 --lora-trigger zvx
ltx-nb train tiny_t2v_lora --model tiny --data data -o run --set optimization.steps=3 --set checkpoints.interval=3 --set validation.interval=3 --set "validation.samples.0.prompt=zvx, a bird sings on a branch"
ltx-nb generate "zvx, a bird sings on a branch" --model tiny --lora run/checkpoints/lora_weights_step_00003.safetensors -o clip.mp4 --width 64 --height 64 --frames 17 --fps 12 --steps 2 --no-guidance
ltx-nb lora info run/checkpoints/lora_weights_step_00003.safetensors
ltx-nb push run me/bird-song --dry-run -o published
ltx-nb push run me/bird-song
