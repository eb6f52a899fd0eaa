"""The demo's input: drawn hospitals, a drawn public set, a trained teacher."""
