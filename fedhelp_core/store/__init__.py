"""Write-once objects in a folder or a bucket: the only place where hub and silos meet."""
