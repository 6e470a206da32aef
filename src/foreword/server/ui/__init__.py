"""The page at ``/ui``: `mount.mount_ui` puts it on the application. Only this room imports Gradio."""
