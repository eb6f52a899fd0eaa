"""A hospital's side after training: models fetched, adopted, asked about images. Nothing here needs the hub but fetching."""
