"""The page at ``/ui``: `mount.mount_ui` puts it on the application. Gradio (the extra ``[ui]``) is imported only here."""
