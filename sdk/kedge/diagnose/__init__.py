"""Why a device is slow, or does not serve: what it tells of itself, and what that means."""
