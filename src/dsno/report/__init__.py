"""What people look at: pictures, a page, and the comparison that fills it."""
